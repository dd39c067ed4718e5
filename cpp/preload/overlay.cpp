// Skipping for every context of a program that knows nothing of it: one Controller each, set up from the environment.
#include "draft_rounds.h"
#include "environment.h"
#include "ffnskip/ffnskip.h"
#include "gguf_magic.h"
#include "hooks.h"
#include "output_file.h"
#include "progress_line.h"
#include "stats_text.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <system_error>
#include <unordered_map>
#include <unordered_set>
#include <utility>

namespace ffnskip {
namespace {

struct Context {
    enum class State {
        unknown,  // not probed yet
        probing,  // the controller decodes, and that comes by here like any decode of the program's
        skipping,
        dense,  // skipping was given up; the context still needs the callback's owner
    };

    Controller             controller;
    State                  state        = State::unknown;
    bool                   outputs_read = true;   // of the last decode
    bool                   decoding     = false;  // what the controller itself decodes meanwhile comes by here too
    std::optional<Profile> profile;               // of the model's own, where that is used
    bool                   drafts = false;        // for another context
    DraftRounds            rounds;                // of its drafts
};

// Of the process. Contexts are decoded without its lock: each belongs to one thread at a time.
struct Overlay {
    std::mutex                                                    mutex;
    Environment                                                   given;
    std::unordered_map<const llama_model *, std::string>          paths;
    std::unordered_set<const llama_model *>                       drafts;  // loaded while another model was there
    std::unordered_map<llama_context *, std::unique_ptr<Context>> contexts;
    std::unordered_map<llama_memory_t, Context *>                 by_memory;
    std::unordered_set<std::string>                               said;   // messages that are not to be repeated
    Stats                                                         freed;  // of contexts that are gone
    DraftRounds::Counts                                           freed_drafts;
};

// Never destroyed: programs free contexts as late as in destructors of their own.
Overlay & overlay() {
    static Overlay & instance = *new Overlay;
    return instance;
}

// Programs make contexts as they like, one a request even.
void say_once(const std::string & message) {
    Overlay &             all = overlay();
    const std::lock_guard lock(all.mutex);
    if (all.said.insert(message).second) {
        say(message);
    }
}

// Does not come back where the program is not to run dense; writes what it has written so far. Of several threads one says
// why.
void stop_if_strict(const std::string & why) {
    if (std::getenv("FFNSKIP_STRICT") != nullptr) {
        static std::mutex & ends = *new std::mutex;
        ends.lock();
        say(why + "; stopped (--strict)");
        std::fflush(nullptr);
        std::_Exit(2);
    }
}

void give_up(Context & context, const std::string & why) {
    context.state = Context::State::dense;
    stop_if_strict(why);
    say(why + "; this context runs dense");
}

Context * context_of(llama_context * ctx) {
    Overlay &             all = overlay();
    const std::lock_guard lock(all.mutex);
    const auto            found = all.contexts.find(ctx);
    return found == all.contexts.end() ? nullptr : found->second.get();
}

template <typename Change> void with_memory(llama_memory_t memory, Change change) {
    Overlay &             all = overlay();
    const std::lock_guard lock(all.mutex);
    if (const auto found = all.by_memory.find(memory); found != all.by_memory.end()) {
        change(found->second->controller);
    }
}

// Contexts that do not generate token by token.
bool left_alone(const llama_model * model, const llama_context_params & params) {
    const bool embeds = params.embeddings || params.pooling_type > LLAMA_POOLING_TYPE_NONE;
    return embeds || params.ctx_type != LLAMA_CONTEXT_TYPE_DEFAULT || llama_model_has_encoder(model) ||
           !llama_model_has_decoder(model) || llama_model_is_recurrent(model) || llama_model_is_diffusion(model);
}

// ---- models ----

void model_loaded(const llama_model * model, const char * path) {
    Overlay &             all = overlay();
    const std::lock_guard lock(all.mutex);
    std::error_code       none;
    if (!all.paths.empty()) {
        all.drafts.insert(model);  // programs that draft load the model that verifies first
    }
    all.paths[model] = std::filesystem::absolute(path, none).string();  // the program may go to another folder
}

void model_freeing(const llama_model * model) {
    Overlay &             all = overlay();
    const std::lock_guard lock(all.mutex);
    all.paths.erase(model);
    all.drafts.erase(model);
}

bool is_draft(const llama_model * model) {
    Overlay &             all = overlay();
    const std::lock_guard lock(all.mutex);
    return all.drafts.count(model) != 0;
}

// Empty where the program did not load it from a file.
std::string path_of(const llama_model * model) {
    Overlay &             all = overlay();
    const std::lock_guard lock(all.mutex);
    const auto            found = all.paths.find(model);
    return found == all.paths.end() ? "" : found->second;
}

// The profile beside or in the model of a context, if that is to be used.
std::optional<Profile> own_profile(const llama_model * model) {
    const std::string path = path_of(model);
    return path.empty() ? std::nullopt : find_profile(model, path);
}

// ---- contexts ----

void apply_settings(Context & context) {
    const Overlay & all = overlay();
    if (all.given.profile) {
        context.controller.set_profile(*all.given.profile);
    } else if (context.profile) {
        context.controller.set_profile(*context.profile);
    } else {
        context.controller.set_config(all.given.config);
    }
}

void set_up(Context & context, llama_context * ctx) {
    const Overlay & all        = overlay();
    Controller &    controller = context.controller;
    controller.set_reuse(all.given.reuse);
    controller.set_weights_source({ path_of(llama_get_model(ctx)), llama_n_threads_batch(ctx),
                                    ProgressLine("ffnskip: storing the weights by channel") });
    apply_settings(context);
    if (!all.given.profile && context.profile) {
        say_once("skipping as " + context.profile->path + " says");
    }
    for (const std::string & line : controller.weights_notes()) {
        say_once(line);
    }
}

// Settings for a context of the model: the profile given, or options, or else the model's own profile. Without any, or with
// one that can't be read, the context is left alone, and why is said.
bool find_settings(Context & context, const llama_model * model) {
    const Overlay & all = overlay();
    if (all.given.profile) {
        return true;
    }
    if (all.given.any_option) {
        say_once("these values are not calibrated for this model; \"ffnskip try MODEL\" says what they cost");
        return true;
    }
    try {
        context.profile = own_profile(model);
    } catch (const std::exception & error) {
        stop_if_strict(error.what());
        say_once(error.what() + std::string("; this context runs dense"));
        return false;
    }
    if (!context.profile) {
        const std::string why =
            "no skip profile for this model: nothing is skipped; \"ffnskip calibrate MODEL --text FILE\" "
            "makes one, \"ffnskip try MODEL\" says what skipping would cost";
        stop_if_strict(why);
        say_once(why);
    }
    return context.profile.has_value();
}

void * attach(const llama_model * model, llama_context_params * params) {
    const Environment & given = overlay().given;
    if (given.config.policy == Policy::dense || left_alone(model, *params) || (given.draft_only && !is_draft(model))) {
        return nullptr;
    }
    auto context    = std::make_unique<Context>();
    context->drafts = given.draft_only;
    if (!find_settings(*context, model)) {
        return nullptr;
    }
    context->controller.attach(*params);
    return context.release();
}

void created(void * attached, llama_context * ctx) {
    std::unique_ptr<Context> context(static_cast<Context *>(attached));
    if (ctx == nullptr) {
        return;
    }
    Overlay &             all = overlay();
    const std::lock_guard lock(all.mutex);
    all.by_memory[llama_get_memory(ctx)] = context.get();
    all.contexts[ctx]                    = std::move(context);
}

void * freeing(llama_context * ctx) {
    Overlay &             all = overlay();
    const std::lock_guard lock(all.mutex);
    const auto            found = all.contexts.find(ctx);
    if (found == all.contexts.end()) {
        return nullptr;
    }
    Context * context = found->second.release();
    all.contexts.erase(found);
    all.by_memory.erase(llama_get_memory(ctx));
    add(all.freed, context->controller.stats());
    add(all.freed_drafts, context->rounds.all());
    return context;
}

void freed(void * detached) {
    delete static_cast<Context *>(detached);
}

// Before the context's memory is used for the first time, and not when it is made: programs make contexts of models that
// were never allocated, to see how much memory they would take.
void prepare(Context & context, llama_context * ctx) {
    if (context.state != Context::State::unknown) {
        return;
    }
    context.state = Context::State::probing;
    try {
        context.controller.probe(ctx);
        set_up(context, ctx);
        context.state = Context::State::skipping;
    } catch (const std::exception & error) {
        give_up(context, error.what());
    }
}

// ---- decoding ----

// Skipping that makes for fewer tokens a second is given up, and tried against none first.
void follow_drafts(Context & context, const llama_batch & batch) {
    if (batch.pos == nullptr || batch.seq_id == nullptr) {
        return;
    }
    const DraftRounds & rounds  = context.rounds;
    const bool          skipped = rounds.skips(), lost = rounds.loses();
    context.rounds.see(batch, llama_time_us());
    if (rounds.loses() && !lost) {
        say_once("drafts are faster without skipping, " + to_line(rounds.dense()) + ", than with it, " +
                 to_line(rounds.skipping()) + "; they run dense");
    }
    if (rounds.skips() == skipped) {
        return;
    }
    if (rounds.skips()) {
        apply_settings(context);
    } else {
        Config dense;
        dense.policy = Policy::dense;
        context.controller.set_config(dense);
    }
}

int32_t decode(llama_context * ctx, const llama_batch * batch, Run run, void * call) {
    Context * context = context_of(ctx);
    if (context == nullptr || batch->n_tokens == 0) {
        return run(call);
    }
    prepare(*context, ctx);
    if (context->state != Context::State::skipping || context->decoding) {
        return run(call);
    }
    struct Noted {
        Run                    run;
        void *                 call;
        std::optional<int32_t> status;  // of the last try, if there was one

        static int32_t decode(void * self) {
            auto & noted = *static_cast<Noted *>(self);
            noted.status = noted.run(noted.call);
            return *noted.status;
        }
    } noted{ run, call, std::nullopt };
    context->decoding = true;
    try {
        // A program that feeds a prompt token by token, each with an output, does not look at them.
        if (!context->outputs_read) {
            context->controller.outputs_unread();
        }
        // A batch that was refused left the outputs of the one before it.
        const Fed fed = context->drafts ? Fed::draft : Fed::recognise;
        if (context->controller.decode(ctx, *batch, Noted::decode, &noted, fed) == 0) {
            context->outputs_read = false;
            if (context->drafts) {
                follow_drafts(*context, *batch);
            }
        }
        if (const auto notice = context->controller.take_notice()) {
            say_once(*notice);
        }
    } catch (const std::exception & error) {
        give_up(*context, error.what());
    }
    context->decoding = false;
    return noted.status ? *noted.status : run(call);  // the controller may have given up before it
}

void outputs_read(llama_context * ctx) {
    if (Context * context = context_of(ctx)) {
        context->outputs_read = true;
    }
}

// ---- what happens to sequences between decodes ----

void copied(llama_memory_t memory, llama_seq_id from, llama_seq_id to) {
    with_memory(memory, [=](Controller & controller) { controller.copied(from, to); });
}

void shifted(llama_memory_t memory, llama_seq_id seq, llama_pos p0, llama_pos p1, llama_pos delta) {
    with_memory(memory, [=](Controller & controller) { controller.shifted(seq, p0, p1, delta); });
}

void replaced(llama_context * ctx, llama_seq_id seq) {
    if (Context * context = context_of(ctx)) {
        prepare(*context, ctx);
        context->controller.replaced(seq);
    }
}

// ---- at exit ----

// Other threads may go on decoding while the program ends.
Stats all_stats() {
    Overlay &             all = overlay();
    const std::lock_guard lock(all.mutex);
    Stats                 sum = all.freed;
    for (const auto & [ctx, context] : all.contexts) {
        add(sum, context->controller.stats());
    }
    return sum;
}

DraftRounds::Counts all_drafts() {
    Overlay &             all = overlay();
    const std::lock_guard lock(all.mutex);
    DraftRounds::Counts   sum = all.freed_drafts;
    for (const auto & [ctx, context] : all.contexts) {
        add(sum, context->rounds.all());
    }
    return sum;
}

void report() {
    const Stats  sum  = all_stats();
    const char * path = std::getenv("FFNSKIP_STATS_FILE");
    if (overlay().given.draft_only) {
        say(to_line(all_drafts()));
    }
    if (path == nullptr) {
        say(to_line(sum));
        return;
    }
    const std::string why_not =
        is_gguf(path) ? "is a GGUF file, which is not overwritten" : write_file(path, to_json(sum));
    if (!why_not.empty()) {
        say(std::string(path) + ": " + why_not + "; " + to_line(sum));
    }
}

constexpr Hooks k_hooks = { model_loaded, model_freeing, attach, created, freeing,  freed,
                            decode,       outputs_read,  copied, shifted, replaced, report };

}  // namespace
}  // namespace ffnskip

extern "C" __attribute__((visibility("default"))) const ffnskip::Hooks * ffnskip_hooks() {
    try {
        ffnskip::require_llama_version();  // here, and not where attach() is called from C
        ffnskip::overlay().given = ffnskip::read_environment();
        return &ffnskip::k_hooks;
    } catch (const std::exception & error) {
        ffnskip::say(std::string(error.what()) + "; the program runs dense");
        return nullptr;
    }
}
