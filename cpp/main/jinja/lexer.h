// A template in tokens: the text between its tags, and what the tags consist of.
#pragma once

#include <string>
#include <vector>

namespace app::jinja {

struct Token {
    enum Kind {
        plain,  // text to be written out
        begin,  // of a tag: {{ or {%
        name,
        number,
        text,    // a quotation, without its marks
        sign,    // anything else; also "not in" and "is not"
        end,     // of a tag
        finish,  // of the template: the last token, and no other
    } kind;
    std::string is;
};

// White space around tags is taken away as trim_blocks and lstrip_blocks ask for. Throws TemplateError.
std::vector<Token> read_tokens(const std::string & chat_template);

}  // namespace app::jinja
