#include "chat.h"

#include "errors.h"
#include "text.h"

#include <llama.h>

#include <algorithm>

namespace app {
namespace {

constexpr char k_space[] = " \t\r\n\v\f";

std::string own_template(const Model & model) {
    const char * text = llama_model_chat_template(model.get(), nullptr);
    return text != nullptr ? text : "";
}

bool recognised(const std::string & chat_template) {
    return render(chat_template, { { "user", "?" } }).has_value();
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
    std::string system = args.system_prompt.value_or("");
    require_no_nul("--system-prompt", system);
    if (const auto own = args.system_prompt ? std::nullopt : default_system_message(template_)) {
        system = *own;  // libllama's rendering leaves it out
        notes_.push_back("the chat begins with the system message of the chat template, \"" + system +
                         "\"; --system-prompt gives another");
    }
    if (!system.empty()) {
        messages_.push_back({ "system", system });
    }
    has_bos_                    = template_.find("bos_token") != std::string::npos;
    const llama_vocab * vocab   = model.vocab();
    const std::string   differs = rendering_differs(template_, model.piece(llama_vocab_bos(vocab), true),
                                                    model.piece(llama_vocab_eos(vocab), true));
    if (!differs.empty()) {
        notes_.push_back("libllama's own rendering of the chat template is used, which may differ: " + differs);
    }
}

bool Chat::is_possible(const Model & model) {
    const std::string text = own_template(model);
    return !text.empty() && recognised(text);
}

Turn Chat::ask(const std::string & message) {
    require_no_nul("the message", message);
    messages_.push_back({ "user", message });
    const std::optional<std::string> whole = render(template_, messages_);
    if (!whole) {
        messages_.pop_back();
        throw BadInput("libllama can't render the conversation with this chat template");
    }
    const std::optional<size_t> known = end_of_answer(*whole);
    asked_                            = *whole;
    return { whole->substr(known.value_or(0)), !known };
}

Tokens Chat::tokenize_beginning(const Model & model, const std::string & text) const {
    Tokens            tokens = model.tokenize(text, true);
    const llama_token bos    = llama_vocab_bos(model.vocab());
    if (tokens.size() >= 2 && tokens[0] == bos && tokens[1] == bos) {
        tokens.erase(tokens.begin());
    } else if (has_bos_ && bos != LLAMA_TOKEN_NULL && (tokens.empty() || tokens[0] != bos)) {
        tokens.insert(tokens.begin(), bos);  // libllama's renderings leave it to the model
    }
    return tokens;
}

void Chat::take_back() {
    messages_.pop_back();
}

void Chat::answered(const std::string & text) {
    messages_.push_back({ "assistant", text });
    std::string & content = messages_.back().content;
    content.erase(std::remove(content.begin(), content.end(), '\0'), content.end());
    fed_    = asked_;
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

}  // namespace app
