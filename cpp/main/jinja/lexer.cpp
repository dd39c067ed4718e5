#include "lexer.h"

#include "../text.h"
#include "operations.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <string_view>

namespace app::jinja {
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

bool is_space(char c) {
    return std::isspace(static_cast<unsigned char>(c)) != 0;
}

bool is_digit(char c) {
    return std::isdigit(static_cast<unsigned char>(c)) != 0;
}

bool is_word(char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
}

class Lexer {
public:
    explicit Lexer(std::string_view text) : rest_(text) {}

    std::vector<Token> read() {
        while (!rest_.empty()) {
            add(Token::plain, read_plain());
            if (rest_.size() > 1 && rest_[1] == '#') {
                const size_t end = rest_.find("#}");
                if (end == std::string_view::npos) {
                    fail("'#}' is missing");
                }
                leave_tag(end, true);
            } else if (!rest_.empty()) {
                read_tag(rest_[1] == '%' ? "%}" : "}}");
            }
        }
        add(Token::finish, "");
        return std::move(tokens_);
    }

private:
    void add(Token::Kind kind, std::string_view is) { tokens_.push_back({ kind, std::string(is) }); }

    // Text up to the next tag.
    std::string read_plain() {
        size_t at = rest_.size();
        for (const char * tag : { "{{", "{%", "{#" }) {
            at = std::min(at, rest_.find(tag));
        }
        std::string text(rest_.substr(0, at));
        rest_.remove_prefix(at);
        if (rest_.size() > 2 && rest_[2] == '-') {
            return without_space(text);
        }
        if (rest_.size() > 2 && rest_[1] != '{' && rest_[2] != '+') {
            const size_t blank = text.find_last_not_of(" \t") + 1;
            if (blank == 0 ? at_line_start_ : text[blank - 1] == '\n') {
                text.erase(blank);
            }
        }
        return text;
    }

    // Past the two characters at `end` that close a tag, and the white space that goes with it.
    void leave_tag(size_t end, bool takes_newline) {
        const bool strips = end > 0 && rest_[end - 1] == '-';
        const bool keeps  = end > 0 && rest_[end - 1] == '+';
        rest_.remove_prefix(end + 2);
        at_line_start_ = false;
        while (!rest_.empty() &&
               (strips ? is_space(rest_[0]) : takes_newline && !keeps && !at_line_start_ && rest_[0] == '\n')) {
            at_line_start_ = rest_[0] == '\n';
            rest_.remove_prefix(1);
        }
    }

    void read_tag(std::string_view end) {
        add(Token::begin, rest_.substr(0, 2));
        size_t at    = 2 + (rest_.size() > 2 && (rest_[2] == '-' || rest_[2] == '+') ? 1 : 0);
        int    depth = 0;  // of braces
        while (at + 1 < rest_.size()) {
            const char c     = rest_[at];
            const bool trims = (c == '-' || c == '+') && rest_.substr(at + 1, 2) == end;
            if (depth == 0 && (trims || rest_.substr(at, 2) == end)) {
                leave_tag(at + (trims ? 1 : 0), end == "%}");
                add(Token::end, end);
                return;
            }
            depth += c == '{' ? 1 : c == '}' ? -1 : 0;
            if (is_space(c)) {
                ++at;
            } else {
                read_token(at);
            }
        }
        fail("'" + std::string(end) + "' is missing");
    }

    void read_token(size_t & at) {
        const char c = rest_[at];
        if (c == '\'' || c == '"') {
            add(Token::text, read_quotation(at));
            return;
        }
        const auto        end    = std::find_if_not(rest_.begin() + long(at), rest_.end(), is_word);
        const size_t      length = size_t(end - rest_.begin()) - at;
        const auto        two    = rest_.substr(at, 2);
        const bool        pair   = two == "==" || two == "!=" || two == "<=" || two == ">=" || two == "//";
        const std::string is(rest_.substr(at, length != 0 ? length : pair ? 2 : 1));
        Token &           before = tokens_.back();
        if (before.kind == Token::name && ((before.is == "not" && is == "in") || (before.is == "is" && is == "not"))) {
            before = { Token::sign, before.is + " " + is };
        } else {
            add(length == 0 ? Token::sign : is_digit(c) ? Token::number : Token::name, is);
        }
        at += is.size();
    }

    std::string read_quotation(size_t & at) {
        const char  quote = rest_[at++];
        std::string text;
        for (; at < rest_.size() && rest_[at] != quote; ++at) {
            if (rest_[at] != '\\' || at + 1 == rest_.size()) {
                text += rest_[at];
                continue;
            }
            const char   name     = rest_[++at];
            const size_t n_digits = name == 'u' ? 4 : name == 'x' ? 2 : 0;
            if (const auto known = escaped(name)) {
                text += *known;
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

    std::string_view   rest_;
    std::vector<Token> tokens_;
    bool               at_line_start_ = true;
};

}  // namespace

std::vector<Token> read_tokens(const std::string & chat_template) {
    std::string text = chat_template;
    for (size_t at = 0; (at = text.find("\r\n", at)) != std::string::npos;) {
        text.erase(at, 1);
    }
    if (!text.empty() && text.back() == '\n') {
        text.pop_back();
    }
    return Lexer(text).read();
}

}  // namespace app::jinja
