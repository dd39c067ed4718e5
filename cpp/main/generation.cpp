#include "generation.h"

#include "terminal.h"

#include <algorithm>
#include <optional>

namespace app {
namespace {

// Whether `text`, to which `n_new` bytes were added, has a reverse prompt that ends in them: a token may go on after it.
bool meets_reverse_prompt(const std::string & text, size_t n_new, const std::vector<std::string> & reverse_prompts) {
    return std::any_of(reverse_prompts.begin(), reverse_prompts.end(), [&](const std::string & wanted) {
        const size_t before = text.size() - n_new;
        const size_t from   = before + 1 > wanted.size() ? before + 1 - wanted.size() : 0;
        return text.find(wanted, from) != std::string::npos;
    });
}

// Why the generation ends after this token, if it does.
std::optional<Ending> ending_after(const Generation & made, const std::string & text, size_t n_new,
                                   const Session & session, const Limits & limits) {
    if (meets_reverse_prompt(text, n_new, limits.reverse_prompts)) {
        return Ending::reverse_prompt;
    }
    if (limits.n_predict > 0 && made.tokens.size() == size_t(limits.n_predict)) {
        return Ending::limit;
    }
    return session.has_room(1) ? std::nullopt : std::optional<Ending>(Ending::context_full);
}

}  // namespace

Generation generate(Engine & engine, const Tokens & prompt, const Limits & limits,
                    const std::function<void(const std::string &)> & print) {
    auto & [model, session, sampler] = engine;
    Generation made = { {}, Ending::limit };
    if (limits.n_predict == 0) {
        return made;
    }
    const Answering answering;
    std::string     text;
    sampler.accept_prompt(prompt);
    session.feed_prompt(prompt);
    while (!answering.interrupted()) {
        const llama_token token = sampler.sample(session.context());
        const std::string piece = model.piece(token, limits.special);
        print(piece);
        if (llama_vocab_is_eog(model.vocab(), token)) {
            made.ending = Ending::end_of_text;
            return made;
        }
        made.tokens.push_back(token);
        text += piece;
        if (const auto ending = ending_after(made, text, piece.size(), session, limits)) {
            made.ending = *ending;
            return made;
        }
        session.feed_generated(token);
    }
    made.ending = Ending::interrupted;
    return made;
}

}  // namespace app
