// What a chat template (Jinja) says beyond what libllama renders of it.
//
// libllama knows the best-known templates by their marks and renders them with code of its own, without Jinja. The texts
// that stand literally in a template show where the two part.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace app {

struct Message {
    std::string role;  // system, user, assistant
    std::string content;
};

// The conversation as libllama renders it, up to where the next answer begins; nullopt where it does not recognise the
// template. Contents must not hold a NUL byte.
std::optional<std::string> render(const std::string & chat_template, const std::vector<Message> & messages);

// The system message that the template writes where a conversation has none.
std::optional<std::string> default_system_message(const std::string & chat_template);

// Where libllama's rendering may differ from the template's, in words; empty where no sign of it is found. `bos` and
// `eos` are the texts of the model's tokens.
std::string rendering_differs(const std::string & chat_template, const std::string & bos, const std::string & eos);

}  // namespace app
