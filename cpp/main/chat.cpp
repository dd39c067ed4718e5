#include "chat.h"

#include "errors.h"
#include "text.h"

#include <llama.h>

#include <algorithm>

namespace app {
namespace {

constexpr char k_space[] = " \t\r\n\v\f";

bool stands_at(const std::string & text, size_t at, const std::string & part) {
    return text.compare(at, part.size(), part) == 0;
}

std::string own_template(const Model & model) {
    const char * text = llama_model_chat_template(model.get(), nullptr);
    return text != nullptr ? text : "";
}

// The conversation as libllama renders it, which knows some templates by their marks and by name; nullopt where it does
// not. It takes contents as C strings.
std::optional<std::string> render_by_libllama(const std::string &          chat_template,
                                              const std::vector<Message> & messages) {
    std::vector<llama_chat_message> list;
    for (const Message & message : messages) {
        require_no_nul("the " + message.role + " message", message.content);
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

bool recognised(const std::string & chat_template) {
    return render_by_libllama(chat_template, { { "user", "?" } }).has_value();
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

// Not a template's name.
bool is_jinja(const std::string & chat_template) {
    return chat_template.find("{%") != std::string::npos || chat_template.find("{{") != std::string::npos;
}

// Two questions and an answer, which show what stands around messages.
const std::vector<Message> k_sample = { { "user", "QUESTION" }, { "assistant", "ANSWER" }, { "user", "QUESTION" } };

// What a template begins with that is no part of the first message, such as a system message of its own.
std::string own_beginning(const std::string & rendered, const std::string & bos) {
    const std::string begin  = rendered.substr(0, rendered.find(k_sample[0].content));
    const std::string before = rendered.substr(0, rendered.rfind(k_sample[0].content));
    size_t            common = 0;  // letters at the end of both
    while (common < begin.size() && begin[begin.size() - 1 - common] == before[before.size() - 1 - common]) {
        ++common;
    }
    const std::string own = begin.substr(0, begin.size() - common);
    return own == bos ? "" : own;
}

}  // namespace

Chat::Chat(const Model & model, const Arguments & args)
    : bos_(model.piece(llama_vocab_bos(model.vocab()), true)), eos_(model.piece(llama_vocab_eos(model.vocab()), true)),
      template_(args.chat_template.empty() ? own_template(model) : args.chat_template) {
    if (args.system_prompt) {
        messages_.push_back({ "system", *args.system_prompt });
    }
    const std::string what = args.chat_template.empty() ? "the model's chat template" : "--chat-template";
    if (template_.empty()) {
        throw BadInput("the model has no chat template; name one with --chat-template, or give --no-conversation");
    }
    if (!is_jinja(template_)) {
        if (!recognised(template_)) {
            throw BadInput(what + ": '" + template_ + "' is neither a template nor one of " + builtin_names());
        }
        return;
    }
    std::vector<Message> sample = messages_;
    sample.insert(sample.end(), k_sample.begin(), k_sample.end());
    try {
        const std::string rendered = render_jinja(template_, sample, bos_, eos_);
        const std::string own      = messages_.empty() ? own_beginning(rendered, bos_) : "";
        jinja_                     = true;
        if (!own.empty()) {
            notes_.push_back(what + " begins with a text of its own: " + own);
        }
        if (llama_vocab_get_add_bos(model.vocab()) && !stands_at(rendered, 0, bos_)) {
            notes_.push_back(what + " writes no start token; it is put first, as the model asks for one");
        }
    } catch (const TemplateError & error) {
        if (!recognised(template_)) {
            throw BadInput(what + " can't be rendered: " + error.what() +
                           "; name one with --chat-template, or give "
                           "--no-conversation");
        }
        notes_.push_back(what + " can't be rendered as it stands: " + error.what() +
                         "; libllama's rendering of such "
                         "templates is used");
    }
}

bool Chat::is_possible(const Model & model) {
    Arguments none;
    try {
        Chat(model, none);
        return true;
    } catch (const BadInput &) {
        return false;
    }
}

std::string Chat::render() const {
    try {
        if (jinja_) {
            return render_jinja(template_, messages_, bos_, eos_);
        }
    } catch (const TemplateError & error) {
        throw BadInput(std::string("the chat template can't render the conversation: ") + error.what());
    }
    const std::optional<std::string> text = render_by_libllama(template_, messages_);
    if (!text) {
        throw BadInput("libllama can't render the conversation with this chat template");
    }
    return *text;
}

Turn Chat::ask(const std::string & message) {
    messages_.push_back({ "user", message });
    try {
        asked_ = render();
    } catch (...) {
        take_back();
        throw;
    }
    const std::optional<size_t> known = end_of_answer(asked_);
    return { asked_.substr(known.value_or(0)), !known };
}

Tokens Chat::tokenize_beginning(const Model & model, const std::string & text) const {
    Tokens            tokens = model.tokenize(text, true);
    const llama_token bos    = llama_vocab_bos(model.vocab());
    if (tokens.size() >= 2 && tokens[0] == bos && tokens[1] == bos) {
        tokens.erase(tokens.begin());
    }
    return tokens;
}

void Chat::take_back() {
    messages_.pop_back();
}

void Chat::answered(const std::string & text) {
    messages_.push_back({ "assistant", text });
    std::string & content = messages_.back().content;
    if (!jinja_) {  // libllama takes C strings
        content.erase(std::remove(content.begin(), content.end(), '\0'), content.end());
    }
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
