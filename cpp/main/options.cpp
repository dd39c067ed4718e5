#include "options.h"

#include "errors.h"
#include "numbers.h"
#include "text.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>
#include <utility>

namespace app {
namespace {

using A   = Arguments &;
using V   = const std::string &;
using Set = std::function<void(A, V)>;

constexpr int32_t k_max       = std::numeric_limits<int32_t>::max();
constexpr int32_t k_max_last  = 1 << 20;  // libllama allocates what it may look back on
constexpr float   k_unbounded = std::numeric_limits<float>::max();

// ---- values ----

template <typename Number> Number to_number(V value, const char * kind, Number low, Number high, Number unbounded) {
    const std::optional<Number> number = ffnskip::parse_number<Number>(value);
    if (number && *number >= low && *number <= high) {
        return *number;
    }
    std::ostringstream wanted;
    wanted << kind;
    if (low != -unbounded) {
        wanted << (high == unbounded ? " >= " : " from ") << low;
    }
    if (high != unbounded) {
        wanted << " to " << high;
    }
    throw Wanted{ wanted.str() };
}

int32_t to_int(V value, int64_t low, int64_t high = k_max) {
    return int32_t(to_number<int64_t>(value, "an integer", low, high, k_max));
}

float to_float(V value, float low, float high = k_unbounded) {
    return to_number<float>(value, "a number", low, high, k_unbounded);
}

// A penalty is also divided by.
float to_penalty(V value) {
    const std::optional<float> number = ffnskip::parse_number<float>(value);
    if (!number || !(*number > 0.0f) || !std::isfinite(*number) || !std::isfinite(1.0f / *number)) {
        throw Wanted{ "a number above 0" };
    }
    return *number;
}

template <typename Value> Value to_named(V value, const std::vector<std::pair<std::string, Value>> & known) {
    std::string list;
    for (const auto & [name, named] : known) {
        if (name == value) {
            return named;
        }
        list += (list.empty() ? "" : ", ") + name;
    }
    throw Wanted{ "one of " + list };
}

ggml_type to_cache_type(V value) {
    std::vector<std::pair<std::string, ggml_type>> known;
    for (const ggml_type type : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0,
                                  GGML_TYPE_Q4_1, GGML_TYPE_IQ4_NL, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1 }) {
        known.push_back({ ggml_type_name(type), type });
    }
    return to_named<ggml_type>(value, known);
}

std::string to_text(V value) {
    if (value.empty()) {
        throw Wanted{ "a text with anything in it" };
    }
    return value;
}

// ---- setters ----

Set flag(bool Arguments::* to, bool value = true) {
    return [=](A a, V) { a.*to = value; };
}

template <typename To> Set integer(To Arguments::* to, int32_t low, int32_t high = k_max) {
    return [=](A a, V v) { a.*to = to_int(v, low, high); };
}

Set number(float Arguments::* to, float low, float high = k_unbounded) {
    return [=](A a, V v) { a.*to = to_float(v, low, high); };
}

Set text(std::string Arguments::* to) {
    return [=](A a, V v) { a.*to = to_text(v); };
}

void set_flash_attn(A a, V v) {
    a.flash_attn = to_named<llama_flash_attn_type>(v, { { "on", LLAMA_FLASH_ATTN_TYPE_ENABLED },
                                                        { "off", LLAMA_FLASH_ATTN_TYPE_DISABLED },
                                                        { "auto", LLAMA_FLASH_ATTN_TYPE_AUTO } });
}

void set_prompt_file(A a, V v) {
    a.prompt_file = v;
    a.prompt.reset();
    a.files_read.push_back(v);
}

void add_lora(A a, V v) {
    a.loras.push_back(v);
    a.files_read.push_back(v);
}

void add_rpc_servers(A a, V v) {
    std::istringstream servers(to_text(v));
    for (std::string server; std::getline(servers, server, ',');) {
        a.rpc_servers.push_back(server);
    }
}

void set_grammar_file(A a, V v) {
    a.grammar        = read_text_file("--grammar-file", v);
    a.grammar_source = "--grammar-file '" + v + "'";
    a.files_read.push_back(v);
}

void set_profile(A a, V v) {
    const ffnskip::Profile profile = ffnskip::read_profile(v);
    a.profile                      = profile.path;
    a.profile_model                = profile.model;
    a.config                       = profile.config;
    a.config_given                 = true;
    a.files_read.push_back(v);
}

// What ffnskip refuses, in words that begin with the option's name.
template <typename Setter> void dashed(Setter set) {
    try {
        set();
    } catch (const std::invalid_argument & error) {
        throw BadInput("--" + std::string(error.what()));
    }
}

// Those of ffnskip, as they are spelled everywhere.
std::vector<Option> skip_options() {
    std::vector<Option> all;
    for (const ffnskip::Option & option : ffnskip::options()) {
        const auto set = [name = std::string(option.name)](A a, V v) {
            dashed([&] { ffnskip::set_option(a.config, name, v); });
            a.config_given = true;
        };
        all.push_back({ { "--" + std::string(option.name) }, option.value, option.help, set });
    }
    return all;
}

// ---- the options ----

const std::vector<Option> k_general = {
    { { "-h", "--help", "--usage" }, nullptr, "print this text", flag(&Arguments::help) },
    { { "--version" }, nullptr, "print the versions of ffnskip and llama.cpp", flag(&Arguments::version) },
    { { "-v", "--verbose" }, nullptr, "show what libllama has to say", flag(&Arguments::verbose) },
};

const std::vector<Option> k_model = {
    { { "-m", "--model" }, "FILE", "GGUF file (default: the demo model)", text(&Arguments::model) },
    { { "--lora" }, "FILE", "LoRA adapter; may be repeated", add_lora },
    { { "-ngl", "--gpu-layers", "--n-gpu-layers" },
      "N",
      "layers on the GPU: a number, auto or all (default: auto)",
      [](A a, V v) { a.n_gpu_layers = v == "auto" || v == "all" ? -1 : to_int(v, -1); } },
    { { "--rpc" },
      "SERVERS",
      "RPC servers whose devices take layers as GPUs do: HOST:PORT,HOST:PORT",
      add_rpc_servers },
};

const std::vector<Option> k_context = {
    { { "-c", "--ctx-size" },
      "N",
      "tokens of context, 0: the model's (default: the prompt and what -n asks for, without -n and in a chat 4096 "
      "more; "
      "at most the model's)",
      integer(&Arguments::n_ctx, 0) },
    { { "-b", "--batch-size" }, "N", "prompt tokens decoded at once (default: 2048)", integer(&Arguments::n_batch, 1) },
    { { "-ub", "--ubatch-size" },
      "N",
      "prompt tokens computed at once (default: 512)",
      integer(&Arguments::n_ubatch, 1) },
    { { "-t", "--threads" },
      "N",
      "threads for generation (default: one per core)",
      integer(&Arguments::n_threads, 1, GGML_MAX_N_THREADS) },
    { { "-tb", "--threads-batch" },
      "N",
      "threads for the prompt (default: as --threads)",
      integer(&Arguments::n_threads_batch, 1, GGML_MAX_N_THREADS) },
    { { "-fa", "--flash-attn" }, "[on|off|auto]", "flash attention (default: auto)", set_flash_attn },
    { { "-ctk", "--cache-type-k" },
      "TYPE",
      "type of the cached keys (default: f16)",
      [](A a, V v) { a.type_k = to_cache_type(v); } },
    { { "-ctv", "--cache-type-v" },
      "TYPE",
      "type of the cached values (default: f16)",
      [](A a, V v) { a.type_v = to_cache_type(v); } },
};

const std::vector<Option> k_text = {
    { { "-p", "--prompt" },
      "TEXT",
      "the prompt; in a chat the first message (default: what is piped in)",
      [](A a, V v) { a.prompt = v, a.prompt_file.reset(); } },
    { { "-f", "--file" }, "FILE", "file with the prompt", set_prompt_file },
    { { "-e", "--escape" },
      nullptr,
      "\\n, \\t and the like stand for what they name (default)",
      flag(&Arguments::escape) },
    { { "--no-escape" }, nullptr, "they stand for themselves", flag(&Arguments::escape, false) },
    { { "-n", "--predict", "--n-predict" },
      "N",
      "tokens to generate; -1 and -2: until the text ends or the context is full (default: -1)",
      integer(&Arguments::n_predict, -2) },
    { { "--ignore-eos" }, nullptr, "never end the text", flag(&Arguments::ignore_eos) },
    { { "-r", "--reverse-prompt" },
      "TEXT",
      "stop after this text; may be repeated",
      [](A a, V v) { a.reverse_prompts.push_back(to_text(v)); } },
    { { "--no-display-prompt" }, nullptr, "print only what is generated", flag(&Arguments::display_prompt, false) },
};

const std::vector<Option> k_chat = {
    { { "-cnv", "--conversation" },
      nullptr,
      "chat (default: on a terminal, where the model has a chat template)",
      [](A a, V) { a.conversation    = true; } },
    { { "-no-cnv", "--no-conversation" },
      nullptr,
      "complete the prompt as it is",
      [](A a, V) { a.conversation    = false; } },
    { { "-st", "--single-turn" }, nullptr, "chat for one answer", flag(&Arguments::single_turn) },
    { { "-sys", "--system-prompt" },
      "TEXT",
      "system message (default: what the chat template says without one)",
      [](A a, V v) { a.system_prompt = v; } },
    { { "--chat-template" },
      "NAME|TEMPLATE",
      "in place of the model's; a template, or the name of one that libllama knows",
      text(&Arguments::chat_template) },
    { { "--jinja" }, nullptr, "accepted: chat templates are rendered as they stand", [](A, V) {} },
    { { "--reuse" },
      "all|full",
      "what answers that skipped have left in the context is used as it is for the next one, or computed again in full "
      "first (default: all)",
      [](A a, V v) { dashed([&] { a.reuse = ffnskip::reuse_from_name(v); }); } },
};

const std::vector<Option> k_sampling = {
    { { "-s", "--seed" },
      "N",
      "seed, -1: random (default: -1)",
      [](A a, V v) { a.seed           = uint32_t(to_int(v, -1, std::numeric_limits<uint32_t>::max())); } },
    { { "--temp", "--temperature" }, "T", "temperature, 0: greedy (default: 0.8)", number(&Arguments::temp, 0.0f) },
    { { "--top-k" }, "K", "the K most probable tokens, 0: all (default: 40)", integer(&Arguments::top_k, -1) },
    { { "--top-p" },
      "P",
      "the most probable tokens up to P in sum, 1: all (default: 0.95)",
      number(&Arguments::top_p, 0.0f, 1.0f) },
    { { "--min-p" },
      "P",
      "tokens at least P times as probable as the best, 0: all (default: 0.05)",
      number(&Arguments::min_p, 0.0f, 1.0f) },
    { { "--repeat-last-n" },
      "N",
      "tokens that the three penalties look back on, 0: none (default: 64)",
      integer(&Arguments::repeat_last_n, 0, k_max_last) },
    { { "--repeat-penalty" },
      "X",
      "divides the logits of repeated tokens, 1: off (default: 1)",
      [](A a, V v) { a.repeat_penalty = to_penalty(v); } },
    { { "--presence-penalty" },
      "X",
      "taken from the logits of tokens that occurred (default: 0)",
      number(&Arguments::presence_penalty, -k_unbounded) },
    { { "--frequency-penalty" },
      "X",
      "taken for every time a token occurred (default: 0)",
      number(&Arguments::frequency_penalty, -k_unbounded) },
    { { "--grammar" },
      "GBNF",
      "grammar that the text follows",
      [](A a, V v) { a.grammar = to_text(v), a.grammar_source = "--grammar"; } },
    { { "--grammar-file" }, "FILE", "file with the grammar", set_grammar_file },
};

const std::vector<Option> k_reports = {
    { { "--stats" }, nullptr, "print what was skipped in each layer", flag(&Arguments::stats) },
    { { "--trace" }, "FILE.csv", "write similarity and skipped blocks of every token", text(&Arguments::trace) },
    { { "--compare" },
      nullptr,
      "generate with and without skipping, token by token in turn; print both texts, the speed-up and its spread",
      flag(&Arguments::compare) },
};

const std::vector<Option> k_profile = {
    { { "--profile" },
      "FILE",
      "skip profile (default: the one beside or in the model, unless a skip option is given; without one nothing is "
      "skipped); skip options after it change single values",
      set_profile },
};

}  // namespace

const std::vector<Section> & sections() {
    static const std::vector<Section> all = {
        { "general", k_general }, { "model", k_model },     { "context", k_context },
        { "text", k_text },       { "chat", k_chat },       { "sampling", k_sampling },
        { "profile", k_profile }, { "reports", k_reports }, { "skipping", skip_options() },
    };
    return all;
}

}  // namespace app
