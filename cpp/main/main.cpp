// ffnskip-main: text generation with llama.cpp that leaves out the feed-forward blocks a token does not need.
//
// What is generated goes to standard output, everything else to
// standard error. Exit status: 0; 1: libllama or the system failed; 2: bad input; 130: interrupted; 141: the reader of
// standard output has gone.
#include "arguments.h"
#include "chat.h"
#include "compare.h"
#include "conversation.h"
#include "errors.h"
#include "generation.h"
#include "input.h"
#include "log.h"
#include "machine.h"
#include "report.h"
#include "terminal.h"
#include "trace_file.h"

#include <ffnskip/version.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <new>
#include <optional>
#include <random>
#include <string>
#include <vector>

namespace app {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int32_t k_room = 4096;  // tokens of context after the prompt, where no option says how many

double ms_since(Clock::time_point start) {
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

std::string version_text() {
    return "ffnskip-main " FFNSKIP_VERSION " (llama.cpp " + std::string(ffnskip::loaded_llama_version()) + ")\n";
}

// The prompt, or a chat's first message; a chat's other messages are read one by one.
std::optional<std::string> read_prompt(const Arguments & args) {
    const std::optional<std::string> given = given_prompt(args);
    const bool                       chats = args.asks_for_chat() && !args.compare;
    return given || chats || stdin_is_terminal() ? given : piped_prompt();
}

// What is read, and must not be written over.
std::vector<std::string> inputs(const Arguments & args) {
    const std::string        model = args.model.empty() ? demo_model() : args.model;
    std::vector<std::string> files = model_files(model);
    files.insert(files.end(), args.files_read.begin(), args.files_read.end());
    files.push_back(ffnskip::profile_path(model));
    return files;
}

// Without options, skips what the model's profile says; without a profile, nothing.
void settle_skipping(Arguments & args, const Model & model) {
    if (args.config_given) {
        return;
    }
    const std::optional<ffnskip::Profile> found = ffnskip::find_profile(model.get(), model.path());
    if (found) {
        args.profile       = found->path;
        args.profile_model = found->model;
        args.config        = found->config;
    } else {
        args.config.policy = ffnskip::Policy::dense;
    }
}

// Where no option decides, a terminal gets a chat.
bool chat_is_implied(const Arguments & args) {
    return !args.conversation && !args.asks_for_chat() && !args.compare && stdin_is_terminal();
}

std::optional<Chat> begin_chat(const Model & model, const Arguments & args) {
    const bool chats = args.asks_for_chat() || (chat_is_implied(args) && Chat::is_possible(model));
    return chats ? std::optional<Chat>(Chat(model, args)) : std::nullopt;
}

Tokens prompt_tokens(const Model & model, std::optional<Chat> & chat, const std::string & prompt) {
    const Tokens tokens = chat ? chat->tokenize_beginning(model, chat->ask(prompt).text) : model.tokenize(prompt, true);
    if (tokens.empty()) {
        throw BadInput("the prompt is empty, and the model has no token to begin a text with; give one with -p TEXT");
    }
    return tokens;
}

// No more than can be used, where no option says: libllama writes to all of the context at the start.
int32_t context_size(const Model & model, const Arguments & args, size_t n_prompt, int32_t n_predict) {
    const int64_t n_train       = llama_model_n_ctx_train(model.get());
    const int64_t needed        = int64_t(n_prompt) + (n_predict >= 0 ? n_predict : k_room);
    const int64_t default_n_ctx = n_train > 0 ? std::min(n_train, needed) : needed;
    return int32_t(std::max<int64_t>(1, args.n_ctx && *args.n_ctx == 0 ? n_train : args.n_ctx.value_or(default_n_ctx)));
}

void require_room(const Session & session, size_t n_tokens) {
    if (!session.has_room(n_tokens)) {
        throw BadInput("the prompt has " + std::to_string(n_tokens) + " tokens, the context " +
                       std::to_string(session.n_ctx()) + "; give a shorter one, or more with --ctx-size");
    }
}

void print_skip_notes(const Arguments & args, Session & session) {
    const bool dense = args.config.policy == ffnskip::Policy::dense;
    if (session.controller() != nullptr) {
        for (const std::string & line : session.controller()->weights_notes()) {
            note(line);
        }
    }
    if (!session.why_dense().empty()) {
        note("nothing is skipped: " + session.why_dense());
    } else if (!args.profile.empty() && !args.config_given) {
        note("skipping as " + args.profile + " says");
    } else if (dense && !args.config_given) {
        note("no skip profile for this model: nothing is skipped; \"ffnskip calibrate MODEL --text FILE\" makes one, "
             "\"ffnskip try MODEL\" says what skipping would cost");
    } else if (!dense && args.profile.empty()) {
        note("these values are not calibrated for this model; \"ffnskip try MODEL\" says what they cost");
    }
}

// What the user may not expect.
void print_notes(const Arguments & args, const Model & model, const std::optional<Chat> & chat, Session & session) {
    const int32_t n_train = llama_model_n_ctx_train(model.get());
    if (args.n_gpu_layers && !llama_supports_gpu_offload()) {
        note("--gpu-layers has no effect: this libllama was built without a GPU");
    }
    const bool has_template = llama_model_chat_template(model.get(), nullptr) != nullptr;
    if (has_template && chat_is_implied(args) && !Chat::is_possible(model)) {
        note("libllama does not recognise the model's chat template; the prompt is completed as it is");
    }
    for (const std::string & line : chat ? chat->notes() : std::vector<std::string>()) {
        note(line);
    }
    if (n_train > 0 && args.n_ctx.value_or(0) > n_train) {
        note("--ctx-size " + std::to_string(*args.n_ctx) + " is more than the " + std::to_string(n_train) +
             " tokens the model was trained for");
    }
    print_skip_notes(args, session);
}

// As libllama's log has it, and llama.cpp's programs do.
void note_two_start_tokens(const Model & model, const Tokens & tokens) {
    const llama_token bos = llama_vocab_bos(model.vocab());
    if (llama_vocab_get_add_bos(model.vocab()) && tokens.size() >= 2 && tokens[0] == bos && tokens[1] == bos) {
        note("the prompt begins with the start token " + model.piece(bos, true) +
             ", and the model adds one: the text has two; leave it out of the prompt");
    }
}

Ending complete(Engine & engine, const Arguments & args, const std::string & prompt, const Tokens & tokens,
                Output & output) {
    if (args.display_prompt) {
        output.write(prompt);
    }
    const Answering answering;
    return generate(engine, tokens, { args.n_predict, args.reverse_prompts }, output).ending;
}

int run(int argc, char ** argv) {
    const Clock::time_point start = Clock::now();
    ffnskip::require_llama_version();
    keep_log(false);
    Arguments args = parse_arguments(argc, argv);
    Output    output;
    if (args.help || args.version) {
        output.write(args.help ? help_text() : version_text());
        return 0;
    }
    if (!args.trace.empty()) {
        require_trace_file(args.trace, inputs(args));
    }
    const std::optional<std::string> prompt = read_prompt(args);

    keep_log(args.verbose);
    llama_backend_init();
    const Model model(args);
    settle_skipping(args, model);
    if (args.seed == LLAMA_DEFAULT_SEED) {
        std::random_device device;
        args.seed = std::uniform_int_distribution<uint32_t>(0, LLAMA_DEFAULT_SEED - 1)(device);
    }
    Sampler             sampler(model, args);
    std::optional<Chat> chat      = begin_chat(model, args);
    const bool          converses = chat && !args.compare;
    const Tokens        tokens =
        converses ? model.tokenize(prompt.value_or(""), true) : prompt_tokens(model, chat, prompt.value_or(""));
    Session session(model, args, context_size(model, args, tokens.size(), converses ? -1 : args.n_predict), false);
    require_room(session, tokens.size());
    explain_aborts("--model '" + model.path() + "'", 1);
    const double load_ms = ms_since(start);
    print_notes(args, model, chat, session);
    note_two_start_tokens(model, tokens);

    Engine engine = { model, session, sampler };
    Ending ending;
    if (converses) {
        ending = converse(engine, *chat, args, prompt, output);
    } else {
        ending = args.compare ? compare(engine, args, tokens, output)
                              : complete(engine, args, prompt.value_or(""), tokens, output);
    }
    if (ending == Ending::context_full) {
        note("context full (n_ctx = " + std::to_string(session.n_ctx()) + ")");
    }

    print_notice(session);
    if (!args.trace.empty()) {
        write_trace(args.trace, session.controller()->stop_trace(), session.generated(), model);
    }
    const std::optional<uint32_t> seed = args.is_random() ? std::optional<uint32_t>(args.seed) : std::nullopt;
    print_summary(session, seed, load_ms, ms_since(start));
    if (args.stats) {
        print_layers(session);
    }
    return ending == Ending::interrupted ? 128 + SIGINT : 0;
}

int fail(int status, const std::string & message) {
    std::fprintf(stderr, "ffnskip-main: %s\n", one_line(message).c_str());
    return status;
}

}  // namespace
}  // namespace app

int main(int argc, char ** argv) {
    using namespace app;
    open_standard_streams();
    watch_signals();
    try {
        return run(argc, argv);
    } catch (const ReaderGone &) {
        return 128 + SIGPIPE;
    } catch (const BadInput & error) {
        return fail(2, error.what());
    } catch (const std::invalid_argument & error) {  // of a skip option
        return fail(2, error.what());
    } catch (const ffnskip::DecodeError & error) {
        const std::string reason = take_error();
        return fail(1, "libllama can't decode: " + std::string(error.what()) + (reason.empty() ? "" : ": " + reason));
    } catch (const std::bad_alloc &) {
        return fail(1, "out of memory");
    } catch (const std::exception & error) {
        return fail(1, error.what());
    }
}
