// Chat templates as models carry them: Jinja, as far as they use it.
//
// What is not understood only matters where a conversation comes to it: most templates have long parts for tools, which
// there are none of here. White space is treated as Hugging Face's transformers and llama_cpp do (trim_blocks and
// lstrip_blocks).
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

namespace app {

struct Message {
    std::string role;  // system, user, assistant
    std::string content;
};

// A template can't be rendered: what is wrong with it, not understood, or what it refuses in its own words.
struct TemplateError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The conversation up to where the next answer begins. `bos` and `eos` are the texts of the model's start and end
// token. Throws TemplateError.
std::string render_jinja(const std::string & chat_template, const std::vector<Message> & messages,
                         const std::string & bos, const std::string & eos);

}  // namespace app
