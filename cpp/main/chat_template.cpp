#include "chat_template.h"

#include "text.h"

#include <llama.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <string_view>

namespace app {
namespace {

constexpr std::string_view k_space = " \t\r\n\v\f";

// ---- the texts in a template ----

// Text that a template writes in one piece: its parts follow each other with nothing computed between them.
struct Written {
    std::vector<std::string> parts;

    std::string whole() const {
        std::string text;
        for (const std::string & part : parts) {
            text += part;
        }
        return text;
    }
};

// A string literal, or the code between two.
struct Token {
    bool        literal;
    std::string text;
};

std::string trimmed(std::string_view text) {
    const size_t first = text.find_first_not_of(k_space);
    return first == std::string_view::npos ?
               "" :
               std::string(text.substr(first, text.find_last_not_of(k_space) + 1 - first));
}

bool ends_with(std::string_view text, std::string_view end) {
    return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

bool starts_with(std::string_view text, std::string_view start) {
    return text.substr(0, start.size()) == start;
}

// Whether a condition asks for what no conversation here has: tools, documents, pictures.
bool never_holds(const std::string & condition) {
    const size_t either = condition.find(" or ");
    if (either != std::string::npos) {
        return never_holds(condition.substr(0, either)) && never_holds(condition.substr(either + 3));
    }
    const auto has = [&](const char * word) { return condition.find(word) != std::string::npos; };
    const bool negated = has(" not ") || has("!=") || has(" is none") || has("false");
    const bool present = has(" is not none");
    const bool unknown = has("tool") || has("function") || has("document") || has("image") || has("audio") || has("video");
    return unknown && (present || !negated);
}

// Whether the literal between `before` and `after` is written, not a key, an argument or compared with.
bool is_written(const std::string & before, const std::string & after) {
    for (const char * end : { "[", "==", "!=", " in", "," }) {
        if (ends_with(before, end)) {
            return false;
        }
    }
    const bool argument = ends_with(before, "(") && before.size() > 1 &&
                          (std::isalnum(static_cast<unsigned char>(before[before.size() - 2])) != 0 ||
                           before[before.size() - 2] == '_');
    for (const char * start : { ":", "==", "!=", "in " }) {
        if (starts_with(after, start)) {
            return false;
        }
    }
    return !argument;
}

// Reads a template from its beginning to its end.
class Reader {
public:
    explicit Reader(std::string_view text) : rest_(text) {}

    // What it writes, in order, but for what no conversation here comes to.
    std::vector<Written> read() {
        while (!rest_.empty()) {
            read_plain();
            if (starts_with(rest_, "{#")) {
                const size_t end = rest_.find("#}");
                after_tag(end == std::string_view::npos ? rest_.size() : end + 2, true);
            } else if (!rest_.empty()) {
                const bool               statement = rest_[1] == '%';
                const std::vector<Token> tokens    = read_tag(statement ? "%}" : "}}");
                statement ? take_statement(tokens) : take_expression(tokens);
            }
        }
        flush();
        return std::move(all_);
    }

    // Whether what was read writes the model's end token.
    bool writes_eos() const { return writes_eos_; }

private:
    // Up to the next tag; white space goes as Jinja is told to by llama.cpp's programs and others (trim_blocks and
    // lstrip_blocks).
    void read_plain() {
        size_t at = 0;
        while (at < rest_.size() && !(rest_[at] == '{' && at + 1 < rest_.size() &&
                                      std::string_view("{%#").find(rest_[at + 1]) != std::string_view::npos)) {
            ++at;
        }
        std::string text(rest_.substr(0, at));
        rest_.remove_prefix(at);
        if (rest_.empty() && ends_with(text, "\n")) {
            text.pop_back();
        } else if (rest_.size() > 2 && rest_[2] == '-') {
            text.erase(text.find_last_not_of(k_space) + 1);
        } else if (rest_.size() > 2 && rest_[1] != '{') {
            const size_t blank = text.find_last_not_of(" \t") + 1;
            if (blank == 0 ? at_line_start_ : text[blank - 1] == '\n') {
                text.erase(blank);
            }
        }
        add(text);
    }

    // The tag that the rest begins with, which it is rid of.
    std::vector<Token> read_tag(std::string_view end) {
        std::vector<Token> tokens = { { false, "" } };
        size_t             at     = 2 + (rest_.size() > 2 && rest_[2] == '-');
        while (at < rest_.size() && !starts_with(rest_.substr(at), end)) {
            if (rest_[at] == '\'' || rest_[at] == '"') {
                tokens.push_back({ true, read_literal(at) });
                tokens.push_back({ false, "" });
            } else {
                tokens.back().text += rest_[at++];
            }
        }
        const bool strips = ends_with(tokens.back().text, "-");
        if (strips) {
            tokens.back().text.pop_back();
        }
        after_tag(std::min(at + end.size(), rest_.size()), end == "%}");
        if (strips) {
            rest_.remove_prefix(std::min(rest_.find_first_not_of(k_space), rest_.size()));
        }
        for (Token & token : tokens) {
            token.text = token.literal ? token.text : trimmed(token.text);
        }
        return tokens;
    }

    void after_tag(size_t length, bool takes_newline) {
        rest_.remove_prefix(length);
        at_line_start_ = takes_newline && starts_with(rest_, "\n");
        rest_.remove_prefix(at_line_start_ ? 1 : 0);
    }

    std::string read_literal(size_t & at) {
        const char  quote = rest_[at++];
        std::string text;
        for (; at < rest_.size() && rest_[at] != quote; ++at) {
            if (rest_[at] == '\\' && at + 1 < rest_.size()) {
                text += unescape(rest_.substr(at++, 2));
            } else {
                text += rest_[at];
            }
        }
        at += at < rest_.size() ? 1 : 0;
        return text;
    }

    void take_expression(const std::vector<Token> & tokens) {
        for (size_t i = 0; i < tokens.size(); ++i) {
            const bool joins = tokens[i].text.empty() || (i > 0 && i + 1 < tokens.size() &&
                                                          (tokens[i].text == "+" || tokens[i].text == "~"));
            if (!tokens[i].literal && !joins) {
                flush();
                writes_eos_ = writes_eos_ || (is_live() && tokens[i].text.find("eos_token") != std::string::npos);
            } else if (tokens[i].literal && is_written(tokens[i - 1].text, tokens[i + 1].text)) {
                add(tokens[i].text);
            }
        }
    }

    void take_statement(const std::vector<Token> & tokens) {
        flush();
        std::string code;
        for (const Token & token : tokens) {
            code += token.literal ? " '" + token.text + "'" : (code.empty() ? "" : " ") + token.text;
        }
        const std::string word = code.substr(0, code.find_first_of(k_space));
        if (word == "if" || word == "for") {
            conditions_.push_back(code);
        } else if ((word == "elif" || word == "else") && !conditions_.empty()) {
            // where an answer is to begin, as here it always is
            conditions_.back() = conditions_.back() == "if add_generation_prompt" ? "tool" : code;
        } else if ((word == "endif" || word == "endfor") && !conditions_.empty()) {
            conditions_.pop_back();
        } else if (word == "set") {
            take_expression(tokens);
            flush();
        }
    }

    void add(const std::string & text) {
        if (!text.empty()) {
            now_.parts.push_back(text);
        }
    }

    bool is_live() const {
        return std::none_of(conditions_.begin(), conditions_.end(),
                            [](const std::string & condition) { return never_holds(condition); });
    }

    void flush() {
        if (!now_.parts.empty() && is_live()) {
            all_.push_back(now_);
        }
        now_.parts.clear();
    }

    std::string_view         rest_;
    bool                     at_line_start_ = true;
    std::vector<std::string> conditions_;  // that what is read stands under
    Written                  now_;
    std::vector<Written>     all_;
    bool                     writes_eos_ = false;
};

// ---- what libllama renders ----

bool is_builtin(const std::string & name) {
    std::vector<const char *> names(size_t(llama_chat_builtin_templates(nullptr, 0)));
    llama_chat_builtin_templates(names.data(), names.size());
    return std::find(names.begin(), names.end(), name) != names.end();
}

constexpr std::array<const char *, 4> k_contents = { "Qsystemq", "Qquestionq", "Qanswerq", "Qnextq" };

// A conversation that shows every frame libllama puts around messages.
std::string sample(const std::string & chat_template, bool system) {
    std::vector<Message> messages;
    if (system) {
        messages.push_back({ "system", k_contents[0] });
    }
    messages.push_back({ "user", k_contents[1] });
    messages.push_back({ "assistant", k_contents[2] });
    messages.push_back({ "user", k_contents[3] });
    return render(chat_template, messages).value_or("");
}

// Whether `text` is made of `tiles`, one after another.
bool is_tiled(std::string_view text, const std::vector<std::string> & tiles) {
    std::vector<bool> reached(text.size() + 1);
    reached[0] = true;
    for (size_t at = 0; at < text.size(); ++at) {
        for (const std::string & tile : tiles) {
            if (reached[at] && starts_with(text.substr(at), tile)) {
                reached[at + tile.size()] = true;
            }
        }
    }
    return reached[text.size()];
}

// What stands between the contents of `conversation`.
std::vector<std::string> frames(const std::string & conversation) {
    std::vector<std::string> list;
    size_t                   from = 0;
    for (const char * content : k_contents) {
        const size_t at = conversation.find(content, from);
        if (at != std::string::npos) {
            list.push_back(conversation.substr(from, at - from));
            from = at + std::string_view(content).size();
        }
    }
    list.push_back(conversation.substr(from));
    return list;
}

// In quotes, in one line, no longer than a line should be.
std::string quoted(const std::string & text) {
    constexpr size_t k_most = 100;
    std::string      line   = text.substr(0, k_most);
    line.erase(complete_utf8(line));
    for (size_t at; (at = line.find('\n')) != std::string::npos;) {
        line.replace(at, 1, "\\n");
    }
    return '"' + line + (text.size() > k_most ? "...\"" : "\"");
}

}  // namespace

std::optional<std::string> render(const std::string & chat_template, const std::vector<Message> & messages) {
    std::vector<llama_chat_message> list;
    for (const Message & message : messages) {
        list.push_back({ message.role.c_str(), message.content.c_str() });
    }
    const int32_t length = llama_chat_apply_template(chat_template.c_str(), list.data(), list.size(), true, nullptr, 0);
    if (length < 0) {
        return std::nullopt;
    }
    std::string text(size_t(length), '\0');
    llama_chat_apply_template(chat_template.c_str(), list.data(), list.size(), true, text.data(), length);
    return text;
}

std::optional<std::string> default_system_message(const std::string & chat_template) {
    const std::string user    = render(chat_template, { { "user", k_contents[1] } }).value_or("");
    const std::string both    = render(chat_template, { { "system", k_contents[0] }, { "user", k_contents[1] } }).value_or("");
    const size_t      content = both.find(k_contents[0]);
    if (!ends_with(both, user) || content == std::string::npos || content == 0) {
        return std::nullopt;  // it has no frame of its own to be found in
    }
    const std::string before = both.substr(0, content);
    const size_t      end    = content + std::string_view(k_contents[0]).size();
    const std::string after  = both.substr(end, both.size() - user.size() - end);
    for (const Written & written : Reader(chat_template).read()) {
        const std::string text = written.whole();
        const size_t      at   = text.find(before);
        const size_t      from = at + before.size();
        const size_t      to   = at == std::string::npos || after.empty() ? at : text.find(after, from);
        if (at != std::string::npos && to != std::string::npos && to > from) {
            return text.substr(from, to - from);
        }
    }
    return std::nullopt;
}

std::string rendering_differs(const std::string & chat_template, const std::string & bos, const std::string & eos) {
    if (is_builtin(chat_template)) {
        return "";
    }
    const bool        has_system = chat_template.find("system") != std::string::npos;
    const std::string rendered   = sample(chat_template, has_system);
    const std::string own_system = default_system_message(chat_template).value_or("");
    const std::string renderings[] = { rendered, sample(chat_template, false),
                                       render(chat_template, { { "system", own_system }, { "user", "?" } }).value_or("") };

    std::vector<std::string> tiles = { "system", "user", "assistant" };
    for (const std::string & token : { bos, eos }) {
        if (!token.empty()) {
            tiles.push_back(token);
        }
    }
    Reader reader(chat_template);
    for (const Written & written : reader.read()) {
        const std::string text = written.whole();
        tiles.insert(tiles.end(), written.parts.begin(), written.parts.end());
        if (std::none_of(std::begin(renderings), std::end(renderings), [&](const std::string & rendering) {
                return rendering.find(text) != std::string::npos;
            })) {
            return "it also has " + quoted(text);
        }
    }
    for (const std::string & frame : frames(rendered)) {
        if (!is_tiled(frame, tiles)) {
            return "libllama writes " + quoted(frame) + " between messages";
        }
    }
    return reader.writes_eos() && !eos.empty() && rendered.find(eos) == std::string::npos ? "it also has " + quoted(eos) : "";
}

}  // namespace app
