#include "chat.h"

#include "errors.h"
#include <algorithm>

namespace app {
namespace {

constexpr char k_space[] = " \t\r\n\v\f";

std::string own_template(const Model & model) {
    const char * text = llama_model_chat_template(model.get(), nullptr);
    return text != nullptr ? text : "";
}

bool recognised(const std::string & chat_template) {
    const llama_chat_message message = { "user", "?" };
    return llama_chat_apply_template(chat_template.c_str(), &message, 1, true, nullptr, 0) >= 0;
}

std::string builtin_names() {
    std::vector<const char *> names(size_t(llama_chat_builtin_templates(nullptr, 0)));
    llama_chat_builtin_templates(names.data(), names.size());
    std::string list;
    for (const char * name : names) {
        list += (list.empty() ? "" : ", ") + std::string(name);
    }
    return list;
}

bool stands_at(const std::string & text, size_t at, const std::string & part) {
    return text.compare(at, part.size(), part) == 0;
}

}  // namespace

Chat::Chat(const Model & model, const Arguments & args)
    : template_(args.chat_template.empty() ? own_template(model) : args.chat_template) {
    if (!args.chat_template.empty() && !recognised(template_)) {
        throw BadInput("--chat-template: '" + template_ +
                       "' is neither a template that libllama recognises nor one of " + builtin_names());
    }
    if (template_.empty() || !recognised(template_)) {
        const char * reason = template_.empty() ? "the model has no chat template" :
                                                  "libllama does not recognise the model's chat template";
        throw BadInput(std::string(reason) + "; name one with --chat-template, or give --no-conversation");
    }
    if (!args.system_prompt.empty()) {
        messages_.push_back({ "system", args.system_prompt });
    }
}

bool Chat::is_possible(const Model & model) {
    const std::string text = own_template(model);
    return !text.empty() && recognised(text);
}

Turn Chat::ask(const std::string & message) {
    messages_.push_back({ "user", message });
    const std::string           whole = render();
    const std::optional<size_t> known = end_of_answer(whole);
    fed_                              = whole;
    return { whole.substr(known.value_or(0)), !known };
}

void Chat::answered(const std::string & text) {
    messages_.push_back({ "assistant", text });
    answer_ = text;
}

// Up to where `whole` is what the context holds. Templates take white space from an answer, or put some around it; the
// context holds the answer as it was generated.
std::optional<size_t> Chat::end_of_answer(const std::string & whole) const {
    if (fed_.empty() || !stands_at(whole, 0, fed_)) {
        return std::nullopt;
    }
    const size_t      first = std::min(answer_.find_first_not_of(k_space), answer_.size());
    const size_t      last  = answer_.find_last_not_of(k_space) + 1;  // 0 where there is only white space
    const std::string core  = answer_.substr(first, std::max(first, last) - first);
    const size_t      begin = std::min(whole.find_first_not_of(k_space, fed_.size()), whole.size());
    if (!stands_at(whole, begin, core)) {
        return std::nullopt;
    }
    const size_t      end  = begin + core.size();
    const std::string rest = answer_.substr(first + core.size());
    return stands_at(whole, end, rest) ? end + rest.size() : end;
}

std::string Chat::render() const {
    std::vector<llama_chat_message> messages;
    for (const Message & message : messages_) {
        messages.push_back({ message.role, message.content.c_str() });
    }
    const int32_t length =
        llama_chat_apply_template(template_.c_str(), messages.data(), messages.size(), true, nullptr, 0);
    if (length < 0) {
        throw BadInput("libllama can't render the conversation with this chat template");
    }
    std::string text(size_t(length), '\0');
    llama_chat_apply_template(template_.c_str(), messages.data(), messages.size(), true, text.data(), length);
    return text;
}

}  // namespace app
