#include "conversation.h"

#include "errors.h"
#include "input.h"
#include "report.h"

#include <utility>

namespace app {
namespace {

std::string room_needed(const Session & session, size_t n_tokens, int32_t n_free) {
    return "context full (n_ctx = " + std::to_string(session.n_ctx()) + "): the message takes " +
           std::to_string(n_tokens) + " tokens, " + std::to_string(n_free) + " are free; --ctx-size gives more";
}

// What the context lacks for the answer to `message`; nullopt, after a note, where it has no room for that. Throws
// BadInput for a message that can't be passed on, or is too long to begin with.
std::optional<Tokens> next_tokens(Engine & engine, Chat & chat, const std::string & message, Tokens missing) {
    Session &    session = engine.session;
    const bool   begins  = session.n_used() == 0;
    const Turn   turn    = chat.ask(message);
    Tokens       tokens  = turn.from_start ? Tokens() : std::move(missing);
    const Tokens rest =
        turn.from_start ? chat.tokenize_beginning(engine.model, turn.text) : engine.model.tokenize(turn.text, false);
    tokens.insert(tokens.end(), rest.begin(), rest.end());

    const int32_t n_free = session.n_ctx() - (turn.from_start ? 0 : session.n_used());
    if (tokens.size() > size_t(n_free)) {
        chat.take_back();
        const std::string reason = room_needed(session, tokens.size(), n_free);
        if (begins) {
            throw BadInput(reason);
        }
        note(reason + "; not answered: " + message);
        return std::nullopt;
    }
    if (turn.from_start) {
        session.clear();
    }
    return tokens;
}

std::string text_of(const Model & model, const Tokens & tokens) {
    std::string text;
    for (const llama_token token : tokens) {
        text += model.piece(token, false);
    }
    return text;
}

// Answers one message; `missing` is what the context lacks of the answer before it.
Ending answer(Engine & engine, Chat & chat, const Tokens & tokens, const Limits & limits, Output & output,
              Tokens & missing) {
    engine.sampler.reset();
    const Generation made = generate(engine, tokens, limits, output);
    chat.answered(text_of(engine.model, made.tokens));
    print_notice(engine.session);
    missing = made.last_is_missing() ? Tokens{ made.tokens.back() } : Tokens();
    if (made.ending == Ending::context_full) {
        note("context full (n_ctx = " + std::to_string(engine.session.n_ctx()) +
             "): the answer ends here; --ctx-size gives more room");
    }
    return made.ending;
}

}  // namespace

Ending converse(Engine & engine, Chat & chat, const Arguments & args, std::optional<std::string> first,
                Output & output) {
    const Limits limits      = { args.n_predict, args.reverse_prompts };
    const bool   on_terminal = stdin_is_terminal();
    Messages     messages(output);
    Tokens       missing;
    if (first && args.display_prompt && on_terminal) {
        output.write("> " + *first + "\n");
    }
    for (;;) {
        std::optional<Tokens> tokens;
        try {
            const auto message = first ? std::exchange(first, std::nullopt) : messages.next();
            if (!message) {
                break;
            }
            tokens = next_tokens(engine, chat, *message, missing);
        } catch (const BadInput & error) {
            if (!on_terminal) {
                throw;
            }
            note(error.what());
        }
        if (!tokens && on_terminal) {
            continue;  // with another message; what has been said stays
        }
        if (!tokens) {
            return Ending::end_of_text;
        }
        const Answering answering;
        const Ending    ending = answer(engine, chat, *tokens, limits, output, missing);
        if (args.single_turn) {
            return ending == Ending::context_full ? Ending::end_of_text : ending;
        }
    }
    if (on_terminal) {
        output.write("\n");  // Ctrl-D leaves the cursor in the line
    }
    return Ending::end_of_text;
}

}  // namespace app
