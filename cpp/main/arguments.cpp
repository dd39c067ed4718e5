#include "arguments.h"

#include "errors.h"
#include "text.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <random>
#include <sstream>
#include <stdexcept>

namespace app {
namespace {

constexpr int32_t k_max       = std::numeric_limits<int32_t>::max();
constexpr int32_t k_max_last  = 1 << 20;  // libllama allocates what it may look back on
constexpr float   k_unbounded = std::numeric_limits<float>::max();

// ---- values ----

// What a setter throws: what would have been right. The caller knows the option and the value.
struct Wanted {
    std::string text;
};

template <typename Number> std::string range_text(const char * kind, Number low, Number high, Number unbounded) {
    std::ostringstream text;
    text << kind << (high == unbounded ? " >= " : " from ") << low;
    if (high != unbounded) {
        text << " to " << high;
    }
    return text.str();
}

int64_t to_integer(const std::string & value, int64_t low, int64_t high) {
    errno = 0;
    char *          end    = nullptr;
    const long long number = std::strtoll(value.c_str(), &end, 10);
    if (value.empty() || std::isspace(static_cast<unsigned char>(value[0])) || *end != '\0' || errno != 0 ||
        number < low || number > high) {
        throw Wanted{ range_text<int64_t>("an integer", low, high, k_max) };
    }
    return number;
}

int32_t to_int(const std::string & value, int32_t low, int32_t high = k_max) {
    return int32_t(to_integer(value, low, high));
}

// -1 is llama-cli's random seed, the largest of all.
uint32_t to_seed(const std::string & value) {
    return uint32_t(to_integer(value, -1, std::numeric_limits<uint32_t>::max()));
}

std::optional<float> to_finite(const std::string & value) {
    char *      end    = nullptr;
    const float number = std::strtof(value.c_str(), &end);
    const bool  whole  = !value.empty() && !std::isspace(static_cast<unsigned char>(value[0])) && *end == '\0';
    return whole && std::isfinite(number) ? std::optional<float>(number) : std::nullopt;
}

float to_float(const std::string & value, float low, float high = k_unbounded) {
    const std::optional<float> number = to_finite(value);
    if (!number || *number < low || *number > high) {
        throw Wanted{ low == -k_unbounded ? "a number" : range_text<float>("a number", low, high, k_unbounded) };
    }
    return *number;
}

// A penalty is also divided by.
float to_penalty(const std::string & value) {
    const std::optional<float> number = to_finite(value);
    if (!number || *number <= 0.0f || !std::isfinite(1.0f / *number)) {
        throw Wanted{ "a number above 0" };
    }
    return *number;
}

// A value by its name; the first name of each group is the one that messages list.
template <typename Value> struct Named {
    Value                     value;
    std::vector<std::string> names;
};

template <typename Value> Value to_named(const std::string & value, const std::vector<Named<Value>> & known) {
    std::string list;
    for (const Named<Value> & entry : known) {
        if (std::find(entry.names.begin(), entry.names.end(), value) != entry.names.end()) {
            return entry.value;
        }
        list += (list.empty() ? "" : ", ") + entry.names[0];
    }
    throw Wanted{ "one of " + list };
}

Choice to_choice(const std::string & value) {
    return to_named<Choice>(value, { { Choice::on, { "on", "1", "true", "enabled" } },
                                     { Choice::off, { "off", "0", "false", "disabled" } },
                                     { Choice::automatic, { "auto", "-1" } } });
}

llama_flash_attn_type to_flash_attn(const std::string & value) {
    switch (to_choice(value)) {
        case Choice::on:  return LLAMA_FLASH_ATTN_TYPE_ENABLED;
        case Choice::off: return LLAMA_FLASH_ATTN_TYPE_DISABLED;
        default:          return LLAMA_FLASH_ATTN_TYPE_AUTO;
    }
}

ggml_type to_cache_type(const std::string & value) {
    std::vector<Named<ggml_type>> known;
    for (const ggml_type type : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0,
                                  GGML_TYPE_Q4_1, GGML_TYPE_IQ4_NL, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1 }) {
        known.push_back({ type, { ggml_type_name(type) } });
    }
    return to_named<ggml_type>(value, known);
}

ggml_numa_strategy to_numa(const std::string & value) {
    return to_named<ggml_numa_strategy>(value, { { GGML_NUMA_STRATEGY_DISTRIBUTE, { "distribute" } },
                                                 { GGML_NUMA_STRATEGY_ISOLATE, { "isolate" } },
                                                 { GGML_NUMA_STRATEGY_NUMACTL, { "numactl" } } });
}

ffnskip::Reuse to_reuse(const std::string & value) {
    using ffnskip::Reuse;
    return to_named<Reuse>(value, { { Reuse::all, { "all" } }, { Reuse::full, { "full" } } });
}

int32_t to_gpu_layers(const std::string & value) {
    return value == "auto" || value == "all" ? -1 : to_int(value, -1);
}

// FILE:SCALE; the last colon counts, as a path may hold others.
Adapter to_scaled_adapter(const std::string & value) {
    const size_t               colon = value.rfind(':');
    const std::optional<float> scale = colon == std::string::npos ? std::nullopt : to_finite(value.substr(colon + 1));
    if (!scale) {
        throw Wanted{ "FILE:SCALE, such as adapter.gguf:0.5" };
    }
    return { value.substr(0, colon), *scale };
}

std::string to_text(const std::string & value) {
    if (value.empty()) {
        throw Wanted{ "a text with anything in it" };
    }
    return value;
}

void add_adapter(Arguments & args, const Adapter & adapter) {
    args.adapters.push_back(adapter);
    args.files_read.push_back(adapter.path);
}

// ---- the options ----

struct Row {
    const char * names;  // "-m, --model"
    const char * value;  // placeholder of its value; null for a switch
    const char * help;
    void (*set)(Arguments &, const std::string &);
};

struct Section {
    const char *     title;
    std::vector<Row> rows;
};

using A = Arguments &;
using V = const std::string &;

const std::vector<Section> & sections() {
    static const std::vector<Section> all = {
        { "general",
          {
              { "-h, --help, --usage", nullptr, "print this text", [](A a, V) { a.help = true; } },
              { "--version", nullptr, "print the versions of ffnskip and llama.cpp", [](A a, V) { a.version = true; } },
              { "-v, --verbose", nullptr, "show what libllama has to say", [](A a, V) { a.verbose = true; } },
              { "-co, --color", "[on|off|auto]", "colours (default: auto, on a terminal)",
                [](A a, V v) { a.color = to_choice(v); } },
          } },
        { "model",
          {
              { "-m, --model", "FILE", "GGUF file (default: the demo model)", [](A a, V v) { a.model = to_text(v); } },
              { "--lora", "FILE", "LoRA adapter; may be repeated",
                [](A a, V v) { add_adapter(a, { v, 1.0f }); } },
              { "--lora-scaled", "FILE:SCALE", "LoRA adapter with its weight; may be repeated",
                [](A a, V v) { add_adapter(a, to_scaled_adapter(v)); } },
              { "-ngl, --gpu-layers, --n-gpu-layers", "N", "layers on the GPU: a number, auto or all (default: auto)",
                [](A a, V v) { a.n_gpu_layers = to_gpu_layers(v); } },
              { "--mlock", nullptr, "keep the model in memory", [](A a, V) { a.mlock = true; } },
              { "--no-mmap", nullptr, "read the model file instead of mapping it", [](A a, V) { a.mmap = false; } },
              { "--numa", "TYPE", "distribute, isolate or numactl", [](A a, V v) { a.numa = to_numa(v); } },
          } },
        { "context",
          {
              { "-c, --ctx-size", "N",
                "tokens of context, 0: the model's (default: the prompt and what -n asks for, without -n and in a chat "
                "4096 more; at most the model's)",
                [](A a, V v) { a.n_ctx = to_int(v, 0); } },
              { "-b, --batch-size", "N", "prompt tokens decoded at once (default: 2048)",
                [](A a, V v) { a.n_batch = to_int(v, 1); } },
              { "-ub, --ubatch-size", "N", "prompt tokens computed at once (default: 512)",
                [](A a, V v) { a.n_ubatch = to_int(v, 1); } },
              { "-t, --threads", "N", "threads for generation (default: one per core)",
                [](A a, V v) { a.n_threads = to_int(v, 1, GGML_MAX_N_THREADS); } },
              { "-tb, --threads-batch", "N", "threads for the prompt (default: as --threads)",
                [](A a, V v) { a.n_threads_batch = to_int(v, 1, GGML_MAX_N_THREADS); } },
              { "-fa, --flash-attn", "[on|off|auto]", "flash attention (default: auto)",
                [](A a, V v) { a.flash_attn = to_flash_attn(v); } },
              { "-ctk, --cache-type-k", "TYPE", "type of the cached keys (default: f16)",
                [](A a, V v) { a.type_k = to_cache_type(v); } },
              { "-ctv, --cache-type-v", "TYPE", "type of the cached values (default: f16)",
                [](A a, V v) { a.type_v = to_cache_type(v); } },
          } },
        { "text",
          {
              { "-p, --prompt", "TEXT", "the prompt; in a chat the first message (default: what is piped in)",
                [](A a, V v) { a.prompt = v, a.prompt_file.reset(); } },
              { "-f, --file", "FILE", "file with the prompt",
                [](A a, V v) {
                    a.prompt_file = v;
                    a.prompt.reset();
                    a.files_read.push_back(v);
                } },
              { "-e, --escape", nullptr, "\\n, \\t and the like stand for what they name (default)",
                [](A a, V) { a.escape = true; } },
              { "--no-escape", nullptr, "they stand for themselves", [](A a, V) { a.escape = false; } },
              { "-n, --predict, --n-predict", "N",
                "tokens to generate; -1 and -2: until the text ends or the context is full (default: -1)",
                [](A a, V v) { a.n_predict = to_int(v, -2); } },
              { "--ignore-eos", nullptr, "never end the text", [](A a, V) { a.sampling.ignore_eos = true; } },
              { "-r, --reverse-prompt", "TEXT", "stop after this text; may be repeated",
                [](A a, V v) { a.reverse_prompts.push_back(to_text(v)); } },
              { "--no-display-prompt", nullptr, "print only what is generated",
                [](A a, V) { a.display_prompt = false; } },
              { "-sp, --special", nullptr, "print special tokens too", [](A a, V) { a.special = true; } },
          } },
        { "chat",
          {
              { "-cnv, --conversation", nullptr, "chat (default: on a terminal, where the model has a chat template)",
                [](A a, V) { a.conversation = Choice::on; } },
              { "-no-cnv, --no-conversation", nullptr, "complete the prompt as it is",
                [](A a, V) { a.conversation = Choice::off; } },
              { "-st, --single-turn", nullptr, "chat for one answer", [](A a, V) { a.single_turn = true; } },
              { "-sys, --system-prompt", "TEXT",
                "system message (default: what the chat template says without one)",
                [](A a, V v) { a.system_prompt = v; } },
              { "--chat-template", "NAME|TEMPLATE",
                "in place of the model's; a template, or the name of one that libllama knows",
                [](A a, V v) { a.chat_template = to_text(v); } },
              { "--jinja", nullptr, "accepted: chat templates are rendered as they stand",
                [](A a, V) { a.jinja = true; } },
              { "--reuse", "all|full",
                "what answers that skipped have left in the context is used as it is for the next one, or computed "
                "again in full first (default: all)",
                [](A a, V v) { a.reuse = to_reuse(v); } },
          } },
        { "sampling",
          {
              { "-s, --seed", "N", "seed, -1: random (default: -1)", [](A a, V v) { a.sampling.seed = to_seed(v); } },
              { "--temp, --temperature", "T", "temperature, 0: greedy (default: 0.8)",
                [](A a, V v) { a.sampling.temp = to_float(v, 0.0f); } },
              { "--top-k", "K", "the K most probable tokens, 0: all (default: 40)",
                [](A a, V v) { a.sampling.top_k = to_int(v, -1); } },
              { "--top-p", "P", "the most probable tokens up to P in sum, 1: all (default: 0.95)",
                [](A a, V v) { a.sampling.top_p = to_float(v, 0.0f, 1.0f); } },
              { "--min-p", "P", "tokens at least P times as probable as the best, 0: all (default: 0.05)",
                [](A a, V v) { a.sampling.min_p = to_float(v, 0.0f, 1.0f); } },
              { "--typical, --typical-p", "P", "locally typical tokens, 1: all (default: 1)",
                [](A a, V v) { a.sampling.typical = to_float(v, 0.0f, 1.0f); } },
              { "--repeat-last-n", "N", "tokens that the three penalties look back on, 0: none (default: 64)",
                [](A a, V v) { a.sampling.repeat_last_n = to_int(v, 0, k_max_last); } },
              { "--repeat-penalty", "X", "divides the logits of repeated tokens, 1: off (default: 1)",
                [](A a, V v) { a.sampling.repeat_penalty = to_penalty(v); } },
              { "--presence-penalty", "X", "taken from the logits of tokens that occurred (default: 0)",
                [](A a, V v) { a.sampling.presence_penalty = to_float(v, -k_unbounded); } },
              { "--frequency-penalty", "X", "taken for every time a token occurred (default: 0)",
                [](A a, V v) { a.sampling.frequency_penalty = to_float(v, -k_unbounded); } },
              { "--dry-multiplier", "X", "DRY: size of the penalty on repeated sequences, 0: off (default: 0)",
                [](A a, V v) { a.sampling.dry_multiplier = to_float(v, 0.0f); } },
              { "--dry-base", "X", "DRY: its growth with their length (default: 1.75)",
                [](A a, V v) { a.sampling.dry_base = to_float(v, 1.0f); } },
              { "--dry-allowed-length", "N", "DRY: length that is free (default: 2)",
                [](A a, V v) { a.sampling.dry_allowed_length = to_int(v, 0); } },
              { "--dry-penalty-last-n", "N", "DRY: tokens looked back on, 0: off (default: 64)",
                [](A a, V v) { a.sampling.dry_penalty_last_n = to_int(v, 0, k_max_last); } },
              { "--mirostat", "N", "Mirostat 1 or 2 in place of the samplers above, 0: off (default: 0)",
                [](A a, V v) { a.sampling.mirostat = to_int(v, 0, 2); } },
              { "--mirostat-lr", "X", "Mirostat: learning rate (default: 0.1)",
                [](A a, V v) { a.sampling.mirostat_lr = to_float(v, 0.0f); } },
              { "--mirostat-ent", "X", "Mirostat: target entropy (default: 5)",
                [](A a, V v) { a.sampling.mirostat_ent = to_float(v, 0.0f); } },
              { "--grammar", "GBNF", "grammar that the text follows",
                [](A a, V v) { a.sampling.grammar = to_text(v), a.sampling.grammar_source = "--grammar"; } },
              { "--grammar-file", "FILE", "file with the grammar",
                [](A a, V v) {
                    a.sampling.grammar        = read_text_file("--grammar-file", v);
                    a.sampling.grammar_source = "--grammar-file '" + v + "'";
                    a.files_read.push_back(v);
                } },
          } },
        { "profile",
          {
              { "--profile", "FILE",
                "skip profile (default: the one beside or in the model, unless a skip option is given; without one "
                "nothing is skipped); skip options after it change single values",
                [](A a, V v) {
                    const ffnskip::Profile profile = ffnskip::read_profile(v);
                    a.profile       = profile.path;
                    a.profile_model = profile.model;
                    a.config        = profile.config;
                    a.config_given  = true;
                    a.files_read.push_back(v);
                } },
          } },
        { "reports",
          {
              { "--stats", nullptr, "print what was skipped in each layer", [](A a, V) { a.stats = true; } },
              { "--trace", "FILE.csv", "write similarity and skipped blocks of every token",
                [](A a, V v) { a.trace = to_text(v); } },
              { "--compare", nullptr,
                "generate with and without skipping, token by token in turn; print both texts, the speed-up and its "
                "spread",
                [](A a, V) { a.compare = true; } },
          } },
    };
    return all;
}

std::vector<std::string> split_names(const std::string & names) {
    std::vector<std::string> list;
    std::istringstream       stream(names);
    for (std::string name; std::getline(stream >> std::ws, name, ',');) {
        list.push_back(name);
    }
    return list;
}

const Row * find_row(const std::string & name) {
    for (const Section & section : sections()) {
        for (const Row & row : section.rows) {
            const std::vector<std::string> names = split_names(row.names);
            if (std::find(names.begin(), names.end(), name) != names.end()) {
                return &row;
            }
        }
    }
    return nullptr;
}

const ffnskip::Option * find_skip_option(const std::string & name) {
    for (const ffnskip::Option & option : ffnskip::options()) {
        if (name == std::string("--") + option.name) {
            return &option;
        }
    }
    return nullptr;
}

// ---- parsing ----

// Letters to insert, delete or replace to get from `a` to `b` (Levenshtein).
size_t edit_distance(const std::string & a, const std::string & b) {
    std::vector<size_t> row(b.size() + 1);
    std::iota(row.begin(), row.end(), size_t(0));
    for (size_t i = 1; i <= a.size(); ++i) {
        size_t diagonal = row[0];
        row[0]          = i;
        for (size_t j = 1; j <= b.size(); ++j) {
            const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
            diagonal              = row[j];
            row[j]                = std::min({ row[j] + 1, row[j - 1] + 1, replaced });
        }
    }
    return row.back();
}

std::vector<std::string> all_names() {
    std::vector<std::string> all;
    for (const Section & section : sections()) {
        for (const Row & row : section.rows) {
            const std::vector<std::string> names = split_names(row.names);
            all.insert(all.end(), names.begin(), names.end());
        }
    }
    for (const ffnskip::Option & option : ffnskip::options()) {
        all.push_back(std::string("--") + option.name);
    }
    return all;
}

[[noreturn]] void refuse_unknown(const std::string & name) {
    if (name.empty() || name[0] != '-') {
        throw BadInput("'" + name + "' is no option; a prompt is given as -p TEXT");
    }
    std::string nearest;
    size_t      distance = std::max<size_t>(2, name.size() / 3) + 1;  // farther is no likely slip
    for (const std::string & known : all_names()) {
        const size_t d = edit_distance(name, known);
        if (d < distance) {
            nearest  = "; did you mean " + known + "?";
            distance = d;
        }
    }
    throw BadInput("'" + name + "' is no option" + (nearest.empty() ? "; --help lists all" : nearest));
}

void set(Arguments & args, const Row & row, const std::string & name, const std::string & value) {
    try {
        row.set(args, value);
    } catch (const Wanted & wanted) {
        throw BadInput(name + ": '" + value + "' is not " + wanted.text);
    }
}

void set_skip(Arguments & args, const ffnskip::Option & option, const std::string & value) {
    try {
        ffnskip::set_option(args.config, option.name, value);
    } catch (const std::invalid_argument & error) {
        throw BadInput("--" + std::string(error.what()));  // begins with the option's name
    }
    args.config_given = true;
}

void unescape_texts(Arguments & args) {
    if (args.prompt) {
        args.prompt = unescape(*args.prompt);
    }
    if (args.system_prompt) {
        args.system_prompt = unescape(*args.system_prompt);
    }
    for (std::string & text : args.reverse_prompts) {
        text = unescape(text);
    }
}

void refuse_contradictions(const Arguments & args) {
    if (args.conversation == Choice::off && (args.single_turn || args.system_prompt)) {
        throw BadInput(std::string(args.single_turn ? "--single-turn" : "--system-prompt") +
                       ": only a chat has one; leave out --no-conversation");
    }
    if (ggml_is_quantized(args.type_v) && args.flash_attn == LLAMA_FLASH_ATTN_TYPE_DISABLED) {
        throw BadInput("--cache-type-v: '" + std::string(ggml_type_name(args.type_v)) +
                       "' needs flash attention; leave out --flash-attn off, or give f16, bf16 or f32");
    }
}

// ---- help ----

constexpr size_t k_help_column = 36;
constexpr size_t k_help_width  = 120;

// `names` at the left, `help` at the right, broken between words.
std::string help_entry(const std::string & names, const char * value, const std::string & help) {
    std::string out  = "  " + names + (value != nullptr ? " " + std::string(value) : "");
    size_t      from = 0;  // where the line begins
    if (out.size() + 2 > k_help_column) {
        from = out.size() + 1;
        out += '\n';
    }
    out.append(from + k_help_column - out.size(), ' ');
    std::istringstream words(help);
    for (std::string word; words >> word;) {
        if (out.size() - from + 1 + word.size() > k_help_width) {
            from = out.size() + 1;
            out += '\n' + std::string(k_help_column, ' ');
        } else if (out.back() != ' ') {
            out += ' ';
        }
        out += word;
    }
    return out + '\n';
}

}  // namespace

uint32_t random_seed() {
    std::random_device device;
    return std::uniform_int_distribution<uint32_t>(0, LLAMA_DEFAULT_SEED - 1)(device);
}

Arguments parse_arguments(int argc, char ** argv) {
    Arguments args;
    for (int i = 1; i < argc; ++i) {
        const std::string       name = argv[i];
        const Row *             row  = find_row(name);
        const ffnskip::Option * skip = row == nullptr ? find_skip_option(name) : nullptr;
        if (row == nullptr && skip == nullptr) {
            refuse_unknown(name);
        }
        const char * placeholder = row != nullptr ? row->value : skip->value;
        if (placeholder != nullptr && ++i == argc) {
            throw BadInput(name + ": a value is missing: " + name + " " + placeholder);
        }
        const std::string value = placeholder != nullptr ? argv[i] : "";
        if (row != nullptr) {
            set(args, *row, name, value);
        } else {
            set_skip(args, *skip, value);
        }
        if (args.help || args.version) {
            return args;
        }
    }
    if (args.escape) {
        unescape_texts(args);
    }
    refuse_contradictions(args);
    require_utf8("--system-prompt", args.system_prompt.value_or(""));
    require_utf8("--chat-template", args.chat_template);
    require_utf8(args.sampling.grammar_source, args.sampling.grammar);
    require_no_nul(args.sampling.grammar_source, args.sampling.grammar);
    args.config.validate();
    return args;
}

std::string help_text() {
    std::string text =
        "usage: ffnskip-main [options]\n\n"
        "Generates text from a GGUF model and leaves out the feed-forward (FFN) blocks that a token does not need\n"
        "(FFN-SkipLLM, arXiv:2404.03865). Ctrl-C stops the answer, twice leaves. In a chat, /exit or Ctrl-D leaves,\n"
        "and a line that ends in \\ goes on in the next.\n";
    for (const Section & section : sections()) {
        text += "\n" + std::string(section.title) + ":\n";
        for (const Row & row : section.rows) {
            text += help_entry(row.names, row.value, row.help);
        }
    }
    text += "\nskipping:\n";
    for (const ffnskip::Option & option : ffnskip::options()) {
        text += help_entry(std::string("--") + option.name, option.value, option.help);
    }
    return text + "\nexample:\n  ffnskip-main -m model.gguf -p \"Once upon a time\" -n 128 --skip-ratio 0.25 --stats\n";
}

}  // namespace app
