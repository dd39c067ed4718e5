#include "conversation.h"

#include "errors.h"
#include "input.h"

namespace app {
namespace {

// The next message; on a terminal after a "> ", in the user's colour from there on.
std::optional<std::string> read_message(Messages & messages, Output & output) {
    return messages.next([&] {
        if (stdin_is_terminal()) {
            output.write("> ");
            output.set(Colour::user);
        }
    });
}

void show_message(const std::string & message, Output & output) {
    output.write("> ");
    output.set(Colour::user);
    output.write(message + "\n");
    output.set(Colour::plain);
}

// What the context lacks for the answer to `message`.
Tokens next_tokens(Engine & engine, Chat & chat, const std::string & message, const Tokens & missing) {
    const Turn turn = chat.ask(message);
    if (turn.from_start) {
        engine.session.clear();
        return tokenize_beginning(engine.model, turn.text);
    }
    Tokens       tokens = missing;
    const Tokens rest   = engine.model.tokenize(turn.text, false);
    tokens.insert(tokens.end(), rest.begin(), rest.end());
    return tokens;
}

std::string text_of(const Model & model, const Tokens & tokens) {
    std::string text;
    for (const llama_token token : tokens) {
        text += model.piece(token, false);
    }
    return text;
}

}  // namespace

Tokens tokenize_beginning(const Model & model, const std::string & text) {
    Tokens            tokens = model.tokenize(text, true);
    const llama_token bos    = llama_vocab_bos(model.vocab());
    if (tokens.size() >= 2 && tokens[0] == bos && tokens[1] == bos) {
        tokens.erase(tokens.begin());
    }
    return tokens;
}

Ending converse(Engine & engine, Chat & chat, const Arguments & args, std::optional<std::string> first,
                Output & output) {
    const Limits limits = { args.n_predict, args.reverse_prompts, args.special };
    Messages     messages;
    Tokens       missing;
    bool         has_answered = false;
    if (first && args.display_prompt && stdin_is_terminal()) {
        show_message(*first, output);
    }
    while (const std::optional<std::string> message = first ? first : read_message(messages, output)) {
        const Answering answering;  // before anything is printed, so that whoever sees it can stop it
        output.set(Colour::plain);
        const Tokens tokens = next_tokens(engine, chat, *message, missing);
        if (!has_answered) {
            engine.session.require_room(tokens.size());
        }
        if (!engine.session.has_room(tokens.size())) {
            return Ending::context_full;
        }
        has_answered = true;
        engine.sampler.reset();
        const Generation made = generate(engine, tokens, limits, output);
        if (made.ending == Ending::context_full) {
            return made.ending;
        }
        chat.answered(text_of(engine.model, made.tokens));
        missing = made.last_is_missing() ? Tokens{ made.tokens.back() } : Tokens();
        first.reset();
        if (args.single_turn) {
            return made.ending;
        }
    }
    output.set(Colour::plain);
    if (stdin_is_terminal()) {
        output.write("\n");  // Ctrl-D leaves the cursor in the line
    }
    return Ending::end_of_text;
}

}  // namespace app
