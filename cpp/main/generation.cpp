#include "generation.h"

#include "terminal.h"

#include <algorithm>

namespace app {
namespace {

// Whether `text` has a reverse prompt that ends in its last `n_new` bytes, which may go on after it.
bool meets_reverse_prompt(const std::string & text, size_t n_new, const std::vector<std::string> & reverse_prompts) {
    return std::any_of(reverse_prompts.begin(), reverse_prompts.end(), [&](const std::string & wanted) {
        const size_t before = text.size() - n_new;
        const size_t from   = before + 1 > wanted.size() ? before + 1 - wanted.size() : 0;
        return text.find(wanted, from) != std::string::npos;
    });
}

}  // namespace

Text::Text(Engine & engine, const Tokens & prompt, const Limits & limits) : engine_(engine), limits_(limits) {
    engine.sampler.accept_prompt(prompt);
    engine.session.feed_prompt(prompt);
    if (limits.n_predict == 0) {
        made_.ending = Ending::limit;
        ended_       = true;
    }
}

bool Text::goes_on() const {
    return !ended_ && !interrupted();
}

void Text::feed() {
    if (!made_.tokens.empty()) {
        engine_.session.feed_generated(made_.tokens.back());
    }
}

std::string Text::choose() {
    const llama_token token = engine_.sampler.sample(engine_.session.context());
    const std::string piece = engine_.model.piece(token, false);
    const bool        ends  = token == LLAMA_TOKEN_NULL || llama_vocab_is_eog(engine_.model.vocab(), token);
    if (!ends) {
        made_.tokens.push_back(token);
        text_ += piece;
    }
    if (const auto ending = ends ? std::optional<Ending>(Ending::end_of_text) : ending_after(piece)) {
        made_.ending = *ending;
        ended_       = true;
    }
    return piece;
}

// Why the text ends after `piece`, if it does.
std::optional<Ending> Text::ending_after(const std::string & piece) const {
    if (meets_reverse_prompt(text_, piece.size(), limits_.reverse_prompts)) {
        return Ending::reverse_prompt;
    }
    if (limits_.n_predict > 0 && made_.tokens.size() == size_t(limits_.n_predict)) {
        return Ending::limit;
    }
    return engine_.session.has_room(1) ? std::nullopt : std::optional<Ending>(Ending::context_full);
}

Generation generate(Engine & engine, const Tokens & prompt, const Limits & limits, Output & output) {
    Text text(engine, prompt, limits);
    while (text.goes_on()) {
        text.feed();
        output.write(text.choose());
    }
    output.end_text();
    return text.made();
}

}  // namespace app
