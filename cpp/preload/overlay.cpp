// Skipping for every context of a program that knows nothing of it: one Controller each, set up from the environment.
#include "batch_rows.h"
#include "ffnskip/ffnskip.h"
#include "hooks.h"
#include "report.h"

#include <cerrno>
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
        dense,    // skipping was given up; the context still needs the callback's owner
    };

    Controller controller;
    State      state = State::unknown;
    bool       outputs_read = true;  // of the last decode
};

// Of the process. Contexts are decoded without the lock: each belongs to one thread at a time.
struct Overlay {
    std::mutex                                                     mutex;
    Config                                                         config;
    bool                                                           config_given = false;
    std::optional<Profile>                                         profile;  // given; `config` is its, options applied
    std::unordered_map<const llama_model *, std::string>           paths;
    std::unordered_map<llama_context *, std::unique_ptr<Context>>  contexts;
    std::unordered_map<llama_memory_t, Context *>                  by_memory;
    std::unordered_map<llama_batch_ext *, BatchRows>               batches;
    std::unordered_set<std::string>                                said;  // messages that are not to be repeated
    Stats                                                          freed;  // of contexts that are gone
};

// Never destroyed: programs free contexts as late as in destructors of their own.
Overlay & overlay() {
    static Overlay & instance = *new Overlay;
    return instance;
}

void say(const std::string & message) {
    std::fprintf(stderr, "ffnskip: %s\n", message.c_str());
}

// Programs make contexts as they like, one a request even.
void say_once(const std::string & message) {
    Overlay &             all = overlay();
    const std::lock_guard lock(all.mutex);
    if (all.said.insert(message).second) {
        say(message);
    }
}

void give_up(Context & context, const std::string & why) {
    context.state = Context::State::dense;
    if (std::getenv("FFNSKIP_STRICT") != nullptr) {
        say(why + "; stopped (--strict)");
        std::_Exit(2);
    }
    say(why + "; this context runs dense");
}

Context * context_of(llama_context * ctx) {
    Overlay &             all = overlay();
    const std::lock_guard lock(all.mutex);
    const auto            found = all.contexts.find(ctx);
    return found == all.contexts.end() ? nullptr : found->second.get();
}

// Makes what `change` does to the rows noted of a batch.
template <typename Change> void with_batch(llama_batch_ext * batch, Change change) {
    Overlay &             all = overlay();
    const std::lock_guard lock(all.mutex);
    change(all.batches[batch]);
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
    all.paths[model] = std::filesystem::absolute(path, none).string();  // the program may go to another folder
}

void model_freeing(const llama_model * model) {
    Overlay &             all = overlay();
    const std::lock_guard lock(all.mutex);
    all.paths.erase(model);
}

// The profile beside or in the model of a context, if that is to be used.
std::optional<Profile> own_profile(const llama_model * model) {
    Overlay &   all = overlay();
    std::string path;
    {
        const std::lock_guard lock(all.mutex);
        const auto            found = all.paths.find(model);
        path                        = found == all.paths.end() ? "" : found->second;
    }
    return path.empty() ? std::nullopt : find_profile(model, path);
}

// ---- contexts ----

void set_up(Controller & controller, const llama_model * model) {
    const Overlay & all = overlay();
    if (all.profile) {
        controller.set_profile(*all.profile);
    } else if (all.config_given) {
        controller.set_config(all.config);
    } else if (const auto found = own_profile(model)) {
        controller.set_profile(*found);
        say_once("skipping as " + found->path + " says");
    } else {
        controller.set_config(all.config);
    }
}

void * attach(const llama_model * model, llama_context_params * params) {
    if (overlay().config.policy == Policy::dense || left_alone(model, *params)) {
        return nullptr;
    }
    auto * context = new Context;
    context->controller.attach(*params);
    return context;
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
        set_up(context.controller, llama_get_model(ctx));
        context.state = Context::State::skipping;
    } catch (const std::exception & error) {
        give_up(context, error.what());
    }
}

// ---- decoding ----

int32_t decode_rows(llama_context * ctx, const llama_batch & rows, Run run, void * call) {
    Context * context = context_of(ctx);
    if (context == nullptr || rows.n_tokens == 0) {
        return run(call);
    }
    prepare(*context, ctx);
    if (context->state != Context::State::skipping) {
        return run(call);
    }
    struct Noted {
        Run     run;
        void *  call;
        int32_t status = 0;

        static int32_t decode(void * self) {
            auto & noted = *static_cast<Noted *>(self);
            return noted.status = noted.run(noted.call);
        }
    } noted{ run, call };
    try {
        // A program that feeds a prompt token by token, each with an output, does not look at them.
        if (!std::exchange(context->outputs_read, false)) {
            context->controller.outputs_unread();
        }
        context->controller.decode(ctx, rows, Noted::decode, &noted);
    } catch (const std::exception & error) {
        give_up(*context, error.what());
    }
    return noted.status;
}

int32_t decode(llama_context * ctx, const llama_batch * batch, Run run, void * call) {
    return decode_rows(ctx, *batch, run, call);
}

int32_t process(llama_context * ctx, llama_batch_ext * batch, Run run, void * call) {
    llama_batch rows{};
    with_batch(batch, [&](BatchRows & noted) { rows = noted.view(); });
    return decode_rows(ctx, rows, run, call);
}

void outputs_read(llama_context * ctx) {
    if (Context * context = context_of(ctx)) {
        context->outputs_read = true;
    }
}

// ---- the contents of batches ----

void batch_cleared(llama_batch_ext * batch) {
    with_batch(batch, [](BatchRows & rows) { rows.clear(); });
}

void batch_freed(llama_batch_ext * batch) {
    Overlay &             all = overlay();
    const std::lock_guard lock(all.mutex);
    all.batches.erase(batch);
}

void row_added(llama_batch_ext * batch, int32_t row, llama_seq_id seq, llama_token token) {
    with_batch(batch, [=](BatchRows & rows) { rows.add(row, seq, token); });
}

void row_shared(llama_batch_ext * batch, int32_t row, llama_seq_id seq) {
    with_batch(batch, [=](BatchRows & rows) { rows.share(row, seq); });
}

void row_embedded(llama_batch_ext * batch, int32_t row) {
    with_batch(batch, [=](BatchRows & rows) { rows.embed(row); });
}

void row_placed(llama_batch_ext * batch, int32_t row, llama_pos pos) {
    with_batch(batch, [=](BatchRows & rows) { rows.place(row, pos); });
}

void row_output(llama_batch_ext * batch, int32_t row, bool output) {
    with_batch(batch, [=](BatchRows & rows) { rows.output(row, output); });
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

void report() {
    Overlay & all = overlay();
    Stats     sum = all.freed;
    for (const auto & [ctx, context] : all.contexts) {
        add(sum, context->controller.stats());
    }
    const char * path = std::getenv("FFNSKIP_STATS_FILE");
    if (path == nullptr) {
        say(to_line(sum));
    } else if (!replace_file(path, to_json(sum))) {
        say(std::string(path) + ": " + std::strerror(errno) + "; " + to_line(sum));
    }
}

constexpr Hooks k_hooks = { model_loaded, model_freeing, attach,     created,      freeing,    freed,
                            decode,       process,       outputs_read, batch_cleared, batch_freed, row_added,  row_shared,
                            row_embedded, row_placed,    row_output, copied,       shifted,    replaced,
                            report };

void read_environment(Overlay & all) {
    if (const char * path = std::getenv("FFNSKIP_PROFILE")) {
        all.profile = read_profile(path);
        all.config  = all.profile->config;
    }
    for (const Option & option : options()) {
        if (const char * value = std::getenv(environment_name(option.name).c_str())) {
            set_option(all.config, option.name, value);
            all.config_given = true;
        }
    }
    all.config.validate();
    if (all.profile) {
        all.profile->config = all.config;
    }
}

}  // namespace
}  // namespace ffnskip

extern "C" __attribute__((visibility("default"))) const ffnskip::Hooks * ffnskip_hooks() {
    try {
        ffnskip::read_environment(ffnskip::overlay());
        return &ffnskip::k_hooks;
    } catch (const std::exception & error) {
        ffnskip::say(std::string(error.what()) + "; the program runs dense");
        return nullptr;
    }
}
