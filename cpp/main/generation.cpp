#include "generation.h"

#include "terminal.h"

#include <algorithm>
#include <optional>

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

// Samples until something ends the text.
Generation continue_text(Engine & engine, const Limits & limits, Output & output) {
    auto & [model, session, sampler] = engine;
    Generation  made                 = { {}, Ending::interrupted };
    std::string text;
    while (!interrupted()) {
        const llama_token token = sampler.sample(session.context());
        const std::string piece = token == LLAMA_TOKEN_NULL ? "" : model.piece(token, limits.special);
        output.write(piece);
        if (token == LLAMA_TOKEN_NULL || llama_vocab_is_eog(model.vocab(), token)) {
            made.ending = Ending::end_of_text;
            break;
        }
        made.tokens.push_back(token);
        text += piece;
        if (const auto ending = ending_after(made, text, piece.size(), session, limits)) {
            made.ending = *ending;
            break;
        }
        session.feed_generated(token);
    }
    return made;
}

}  // namespace

Generation generate(Engine & engine, const Tokens & prompt, const Limits & limits, Output & output) {
    engine.sampler.accept_prompt(prompt);
    engine.session.feed_prompt(prompt);
    const Generation made =
        limits.n_predict == 0 ? Generation{ {}, Ending::limit } : continue_text(engine, limits, output);
    output.end_text();
    return made;
}

}  // namespace app
