#include "arguments.h"

#include "errors.h"
#include "options.h"
#include "text.h"

#include <algorithm>
#include <numeric>
#include <sstream>

namespace app {
namespace {

// Options of llama-cli that have nothing to do with skipping.
constexpr const char * k_elsewhere[] = {
    "--mirostat",
    "--mirostat-lr",
    "--mirostat-ent",
    "--typical",
    "--typical-p",
    "--dry-multiplier",
    "--dry-base",
    "--numa",
    "--dry-allowed-length",
    "--dry-penalty-last-n",
    "--lora-scaled",
    "--mlock",
    "--no-mmap",
    "-sp",
    "--special",
    "-co",
    "--color",
};

// Calls `visit` with every name and its option.
template <typename Visit> void for_each_name(Visit visit) {
    for (const Section & section : sections()) {
        for (const Option & option : section.options) {
            for (const std::string & name : option.names) {
                visit(name, option);
            }
        }
    }
}

const Option * find(const std::string & name) {
    const Option * found = nullptr;
    for_each_name([&](const std::string & known, const Option & option) { found = known == name ? &option : found; });
    return found;
}

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

// `value` is the next word of the command line, if there is one.
[[noreturn]] void refuse(const std::string & name, const char * value) {
    if (std::find(std::begin(k_elsewhere), std::end(k_elsewhere), name) != std::end(k_elsewhere)) {
        const std::string words = name + (value != nullptr && *value != '-' ? std::string(" ") + value : "");
        throw BadInput(name + " is not here; \"ffnskip run -- llama-cli ... " + words + "\" has it");
    }
    if (name.empty() || name[0] != '-') {
        throw BadInput("'" + name + "' is no option; a prompt is given as -p TEXT");
    }
    std::string advice   = "; --help lists all";
    size_t      distance = std::max<size_t>(2, name.size() / 3) + 1;  // farther is no likely slip
    for_each_name([&](const std::string & known, const Option &) {
        const size_t d = edit_distance(name, known);
        if (d < distance) {
            advice   = "; did you mean " + known + "?";
            distance = d;
        }
    });
    throw BadInput("'" + name + "' is no option" + advice);
}

void unescape_texts(Arguments & args) {
    for (std::optional<std::string> * text : { &args.prompt, &args.system_prompt }) {
        if (*text) {
            *text = unescape(**text);
        }
    }
    for (std::string & text : args.reverse_prompts) {
        text = unescape(text);
    }
}

void refuse_contradictions(const Arguments & args) {
    if (!args.conversation.value_or(true) && (args.single_turn || args.system_prompt)) {
        throw BadInput(std::string(args.single_turn ? "--single-turn" : "--system-prompt") +
                       ": only a chat has one; leave out --no-conversation");
    }
    if (ggml_is_quantized(args.type_v) && args.flash_attn == LLAMA_FLASH_ATTN_TYPE_DISABLED) {
        throw BadInput("--cache-type-v: '" + std::string(ggml_type_name(args.type_v)) +
                       "' needs flash attention; leave out --flash-attn off, or give f16, bf16 or f32");
    }
}

// `names` at the left, `help` at the right, broken between words.
std::string help_entry(const Option & option) {
    constexpr size_t k_column = 36;
    constexpr size_t k_width  = 120;

    std::string out;
    for (const std::string & name : option.names) {
        out += (out.empty() ? "  " : ", ") + name;
    }
    out += option.value != nullptr ? " " + std::string(option.value) : "";
    size_t from = 0;  // where the line begins
    if (out.size() + 2 > k_column) {
        from = out.size() + 1;
        out += '\n';
    }
    out.append(from + k_column - out.size(), ' ');
    std::istringstream words(option.help);
    for (std::string word; words >> word;) {
        if (out.size() - from + 1 + word.size() > k_width) {
            from = out.size() + 1;
            out += '\n' + std::string(k_column, ' ');
        } else if (out.back() != ' ') {
            out += ' ';
        }
        out += word;
    }
    return out + '\n';
}

}  // namespace

Arguments parse_arguments(int argc, char ** argv) {
    Arguments args;
    for (int i = 1; i < argc && !args.help && !args.version; ++i) {
        const std::string name   = argv[i];
        const Option *    option = find(name);
        if (option == nullptr) {
            refuse(name, argv[i + 1]);
        }
        if (option->value != nullptr && ++i == argc) {
            throw BadInput(name + ": a value is missing: " + name + " " + option->value);
        }
        const std::string value = option->value != nullptr ? argv[i] : "";
        try {
            option->set(args, value);
        } catch (const Wanted & wanted) {
            throw BadInput(name + ": '" + value + "' is not " + wanted.text);
        }
    }
    if (args.help || args.version) {
        return args;
    }
    if (args.escape) {
        unescape_texts(args);
    }
    refuse_contradictions(args);
    require_utf8("--system-prompt", args.system_prompt.value_or(""));
    require_utf8("--chat-template", args.chat_template);
    require_utf8(args.grammar_source, args.grammar);
    require_no_nul(args.grammar_source, args.grammar);
    args.config.validate();
    return args;
}

std::string help_text() {
    std::string text =
        "usage: ffnskip-main [options]\n\n"
        "Generates text from a GGUF model and leaves out the feed-forward (FFN) blocks that a token does not need\n"
        "(FFN-SkipLLM, arXiv:2404.03865). Ctrl-C stops the answer, twice leaves. In a chat, /exit or Ctrl-D leaves,\n"
        "and a line that ends in \\ goes on in the next. \"ffnskip run -- llama-cli\" has every other option of "
        "llama-cli.\n";
    for (const Section & section : sections()) {
        text += "\n" + std::string(section.title) + ":\n";
        for (const Option & option : section.options) {
            text += help_entry(option);
        }
    }
    return text + "\nexample:\n  ffnskip-main -m model.gguf -p \"Once upon a time\" -n 128 --skip-ratio 0.25 --stats\n";
}

}  // namespace app
