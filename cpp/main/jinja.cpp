#include "jinja.h"

#include "jinja_expressions.h"
#include "jinja_values.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <memory>
#include <string_view>

namespace app {
namespace jinja {
namespace {

std::string utf8(uint32_t code) {
    if (code < 0x80) {
        return std::string(1, char(code));
    }
    if (code < 0x800) {
        return { char(0xC0 | code >> 6), char(0x80 | (code & 0x3F)) };
    }
    return { char(0xE0 | code >> 12), char(0x80 | (code >> 6 & 0x3F)), char(0x80 | (code & 0x3F)) };
}

bool is_digit(char c) {
    return std::isdigit(static_cast<unsigned char>(c)) != 0;
}

bool is_word(char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
}

// What ends a loop, or one round of it.
struct Break : TemplateError {
    Break() : TemplateError("'break' stands outside of a loop") {}
};
struct Continue : TemplateError {
    Continue() : TemplateError("'continue' stands outside of a loop") {}
};

// Reads a template into nodes.
class TemplateReader {
public:
    explicit TemplateReader(const std::string & text) : text_(replaced(text, "\r\n", "\n")) {
        if (!text_.empty() && text_.back() == '\n') {
            text_.pop_back();
        }
        rest_ = text_;
    }

    Nodes read() {
        std::string end;
        Nodes       nodes = block({}, end);
        return nodes;
    }

private:
    // Up to a statement that begins with one of `ends`, which the reader is then at; without any, to the end.
    Nodes block(const std::vector<std::string> & ends, std::string & end) {
        const Nested nested(depth_);
        Nodes        nodes;
        while (!rest_.empty()) {
            const std::string plain = read_plain();
            nodes.push_back([plain](Scopes &, std::string & out) { out += plain; });
            if (rest_.empty()) {
                break;
            }
            const char kind = rest_[1];
            if (kind == '#') {
                skip_comment();
                continue;
            }
            ExpressionReader tag(read_tag(kind == '%' ? "%}" : "}}"));
            if (kind == '{') {
                nodes.push_back([value = whole(tag)](Scopes & s, std::string & out) { out += to_text(value(s)); });
                continue;
            }
            end = tag.name();
            if (std::find(ends.begin(), ends.end(), end) != ends.end()) {
                tag_ = std::make_unique<ExpressionReader>(tag);
                return nodes;
            }
            nodes.push_back(statement(end, tag));
        }
        if (!ends.empty()) {
            fail("'" + ends.back() + "' is missing");
        }
        return nodes;
    }

    // One that is not understood fails where it is evaluated, which most conversations never come to.
    static Expression whole(ExpressionReader & tag) {
        try {
            const Expression value = tag.expression();
            if (!tag.at_end()) {
                fail("'" + tag.next().is + "' is not understood");
            }
            return value;
        } catch (const TemplateError & error) {
            return [error](Scopes &) -> Value { throw error; };
        }
    }

    Node statement(const std::string & word, ExpressionReader & tag) {
        if (word == "if") {
            return conditional(tag);
        }
        if (word == "for") {
            return loop(tag);
        }
        if (word == "set") {
            return assignment(tag);
        }
        if (word == "generation" || word == "endgeneration") {
            return [](Scopes &, std::string &) {};
        }
        if (word == "macro") {
            return macro(tag);
        }
        if (word == "break") {
            return [](Scopes &, std::string &) { throw Break(); };
        }
        if (word == "continue") {
            return [](Scopes &, std::string &) { throw Continue(); };
        }
        return [word](Scopes &, std::string &) { fail("the statement '" + word + "' is not known here"); };
    }

    Node conditional(ExpressionReader & tag) {
        std::vector<std::pair<Expression, Nodes>> branches;
        Expression                                condition = whole(tag);
        for (std::string end; end != "endif";) {
            const Nodes nodes = block({ "elif", "else", "endif" }, end);
            branches.push_back({ condition, nodes });
            condition = end == "elif" ? whole(*tag_) : [](Scopes &) { return Value(true); };
        }
        return [branches](Scopes & s, std::string & out) {
            for (const auto & [holds, nodes] : branches) {
                if (is_true(holds(s))) {
                    write(nodes, s, out);
                    return;
                }
            }
        };
    }

    Node macro(ExpressionReader & tag) {
        const std::string name  = tag.name();
        const auto        macro = std::make_shared<Macro>();
        for (tag.expect("("); !tag.take(")"); tag.take(",")) {
            macro->names.push_back(tag.name());
            macro->defaults.push_back(tag.take("=") ? tag.expression() : [](Scopes &) { return Value(); });
        }
        std::string end;
        macro->nodes = block({ "endmacro" }, end);
        return [name, macro](Scopes & s, std::string &) { s.all.back()[name] = macro; };
    }

    Node loop(ExpressionReader & tag) {
        std::vector<std::string> names = { tag.name() };
        while (tag.take(",")) {
            names.push_back(tag.name());
        }
        tag.expect("in");
        const Expression over = tag.disjunction();
        const Expression only = tag.take("if") ? tag.expression() : [](Scopes &) { return Value(true); };
        if (!tag.at_end()) {
            fail("'" + tag.next().is + "' is not understood");
        }
        std::string end;
        const Nodes body = block({ "else", "endfor" }, end);
        const Nodes none = end == "else" ? block({ "endfor" }, end) : Nodes();
        return [=](Scopes & s, std::string & out) {
            const Value of = over(s);
            if (!of.list() && !of.as<Undefined>()) {
                fail("a loop runs over what is no list");
            }
            const size_t n_scopes = s.all.size();
            s.all.emplace_back();
            List chosen;
            for (const Value & value : of.list() ? *of.list() : List()) {
                bind(names, value, s.all.back());
                if (is_true(only(s))) {
                    chosen.push_back(value);
                }
            }
            for (size_t i = 0; i < chosen.size(); ++i) {
                s.all.back().clear();
                bind(names, chosen[i], s.all.back());
                s.all.back()["loop"] = position(chosen, i);
                try {
                    write(body, s, out);
                } catch (const Continue &) {
                    s.all.resize(n_scopes + 1);
                } catch (const Break &) {
                    break;
                }
            }
            s.all.resize(n_scopes);
            if (chosen.empty()) {
                write(none, s, out);
            }
        };
    }

    static void bind(const std::vector<std::string> & names, const Value & value, Dict & scope) {
        for (size_t i = 0; i < names.size(); ++i) {
            scope[names[i]] = names.size() == 1 ? value : member(value, int64_t(i));
        }
    }

    static Value position(const List & of, size_t i) {
        Dict loop;
        loop["index"]  = int64_t(i + 1);
        loop["index0"] = int64_t(i);
        loop["first"]  = i == 0;
        loop["last"]   = i + 1 == of.size();
        loop["length"] = int64_t(of.size());
        if (i > 0) {
            loop["previtem"] = of[i - 1];
        }
        if (i + 1 < of.size()) {
            loop["nextitem"] = of[i + 1];
        }
        return std::make_shared<Dict>(std::move(loop));
    }

    Node assignment(ExpressionReader & tag) {
        const std::string name = tag.name();
        const std::string part = tag.take(".") ? tag.name() : "";
        if (tag.at_end()) {  // what stands up to endset
            std::string end;
            const Nodes nodes = block({ "endset" }, end);
            return [name, nodes](Scopes & s, std::string &) {
                std::string text;
                write(nodes, s, text);
                s.all.back()[name] = text;
            };
        }
        tag.expect("=");
        const Expression value = whole(tag);
        return [=](Scopes & s, std::string &) {
            if (part.empty()) {
                s.all.back()[name] = value(s);
                return;
            }
            const Value of = s.get(name);
            if (!of.dict()) {
                fail("'" + name + "' is no namespace");
            }
            (**of.as<std::shared_ptr<Dict>>())[part] = value(s);
        };
    }

    // Text up to the next tag.
    std::string read_plain() {
        size_t at = rest_.size();
        for (const char * tag : { "{{", "{%", "{#" }) {
            at = std::min(at, rest_.find(tag));
        }
        std::string text(rest_.substr(0, at));
        rest_.remove_prefix(at);
        if (rest_.size() > 2 && rest_[2] == '-') {
            return without_space(text, false, true);
        }
        if (rest_.size() > 2 && rest_[1] != '{' && rest_[2] != '+') {
            const size_t blank = text.find_last_not_of(" \t") + 1;
            if (blank == 0 ? at_line_start_ : text[blank - 1] == '\n') {
                text.erase(blank);
            }
        }
        return text;
    }

    void skip_comment() {
        const size_t end = rest_.find("#}");
        if (end == std::string_view::npos) {
            fail("'#}' is missing");
        }
        after_tag(end, true);
    }

    // Past the two characters at `end` that close a tag, and the white space that goes with it.
    void after_tag(size_t end, bool takes_newline) {
        const bool strips = end > 0 && rest_[end - 1] == '-';
        const bool keeps  = end > 0 && rest_[end - 1] == '+';
        rest_.remove_prefix(end + 2);
        at_line_start_ = false;
        while (!rest_.empty() && (strips ? std::isspace(static_cast<unsigned char>(rest_[0])) != 0 :
                                           takes_newline && !keeps && !at_line_start_ && rest_[0] == '\n')) {
            at_line_start_ = rest_[0] == '\n';
            rest_.remove_prefix(1);
        }
    }

    std::vector<Token> read_tag(std::string_view end) {
        std::vector<Token> tokens;
        size_t             at    = 2 + (rest_.size() > 2 && (rest_[2] == '-' || rest_[2] == '+') ? 1 : 0);
        int                depth = 0;  // of braces
        while (at + 1 < rest_.size()) {
            const char c     = rest_[at];
            const bool trims = (c == '-' || c == '+') && rest_.substr(at + 1, 2) == end;
            if (depth == 0 && (trims || rest_.substr(at, 2) == end)) {
                after_tag(at + (trims ? 1 : 0), end == "%}");
                tokens.push_back({ Token::end, std::string(end) });
                return tokens;
            }
            depth += c == '{' ? 1 : c == '}' ? -1 : 0;
            if (std::isspace(static_cast<unsigned char>(c)) != 0) {
                ++at;
            } else {
                add_token(tokens, at);
            }
        }
        fail("'" + std::string(end) + "' is missing");
    }

    void add_token(std::vector<Token> & tokens, size_t & at) {
        const char c = rest_[at];
        if (c == '\'' || c == '"') {
            const std::string text = read_literal(at);
            if (!tokens.empty() && tokens.back().kind == Token::text) {
                tokens.back().is += text;  // as in Python, neighbours are one
            } else {
                tokens.push_back({ Token::text, text });
            }
            return;
        }
        size_t length = 0;
        while (at + length < rest_.size() && is_word(rest_[at + length])) {
            ++length;
        }
        if (length != 0) {
            const std::string word(rest_.substr(at, length));
            const bool        number = is_digit(c);
            if (number && (length > 18 || !std::all_of(word.begin(), word.end(), is_digit))) {
                fail("'" + word + "' is no number");
            }
            tokens.push_back({ number ? Token::number : Token::name, word });
        } else {
            const std::string_view two = rest_.substr(at, 2);
            length = two == "==" || two == "!=" || two == "<=" || two == ">=" || two == "//" ? 2 : 1;
            tokens.push_back({ Token::sign, std::string(rest_.substr(at, length)) });
        }
        at += length;
    }

    std::string read_literal(size_t & at) {
        const char  quote = rest_[at++];
        std::string text;
        for (; at < rest_.size() && rest_[at] != quote; ++at) {
            if (rest_[at] != '\\' || at + 1 == rest_.size()) {
                text += rest_[at];
                continue;
            }
            constexpr std::string_view k_names  = "nrt'\"\\";
            constexpr std::string_view k_values = "\n\r\t'\"\\";
            const char                 name     = rest_[++at];
            const size_t               n_digits = name == 'u' ? 4 : name == 'x' ? 2 : 0;
            if (const size_t known = k_names.find(name); known != std::string_view::npos) {
                text += k_values[known];
            } else if (n_digits != 0 && at + n_digits < rest_.size()) {
                text += utf8(uint32_t(std::strtoul(std::string(rest_.substr(at + 1, n_digits)).c_str(), nullptr, 16)));
                at += n_digits;
            } else {
                fail(std::string("'\\") + name + "' is not known here");
            }
        }
        if (at >= rest_.size()) {
            fail("a quotation does not end");
        }
        ++at;
        return text;
    }

    std::string                       text_;
    std::string_view                  rest_;
    bool                              at_line_start_ = true;
    int                               depth_         = 0;
    std::unique_ptr<ExpressionReader> tag_;  // that ended the last block
};

}  // namespace
}  // namespace jinja

std::string render_jinja(const std::string & chat_template, const std::vector<Message> & messages,
                         const std::string & bos, const std::string & eos) {
    using namespace jinja;
    Scopes scopes;
    Dict & globals = scopes.all[0];
    List   list;
    for (const Message & message : messages) {
        list.push_back(std::make_shared<Dict>(Dict{ { "role", message.role }, { "content", message.content } }));
    }
    globals["messages"]              = list_of(std::move(list));
    globals["bos_token"]             = bos;
    globals["eos_token"]             = eos;
    globals["add_generation_prompt"] = true;
    for (const char * none : { "tools", "tool_choice", "functions", "function_call" }) {
        globals[none] = None();
    }
    globals["strftime_now"]    = true;  // they are defined, which is asked for
    globals["raise_exception"] = true;

    std::string text;
    write(TemplateReader(chat_template).read(), scopes, text);
    return text;
}

}  // namespace app
