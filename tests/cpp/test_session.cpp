// Property: a session decodes what plain llama.cpp would, with a controller and without, one sequence and several.
#include "clients/client.h"
#include "expect.h"
#include "ffnskip/ffnskip.h"

#include <cmath>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

using namespace ffnskip;

namespace {

using Tokens = std::vector<llama_token>;

struct Sampler {
    llama_sampler * greedy = llama_sampler_init_greedy();
    ~Sampler() { llama_sampler_free(greedy); }
};

Context context_of(const Model & model, Controller * controller, uint32_t n_seq_max = 1) {
    llama_context_params params = exact_params();
    params.n_ctx                = 256;
    params.n_batch              = 16;
    params.n_seq_max            = n_seq_max;
    params.kv_unified           = true;
    if (controller != nullptr) {
        controller->attach(params);
    }
    Context ctx = make_context(model, params);
    if (controller != nullptr) {
        controller->probe(ctx.get());
        Config config;
        config.layers        = std::vector<int>{ 1 };
        config.max_skip      = 0;
        config.warm_up_index = 3;
        controller->set_config(config);
    }
    return ctx;
}

std::vector<float> logits_of(llama_context * ctx, const Model & model, int32_t row = -1) {
    const float * logits = llama_get_logits_ith(ctx, row);
    return { logits, logits + llama_vocab_n_tokens(llama_model_get_vocab(model.get())) };
}

double largest_difference(const std::vector<float> & a, const std::vector<float> & b) {
    double most = 0.0;
    for (size_t i = 0; i < a.size(); ++i) {
        most = std::max(most, std::abs(double(a[i]) - double(b[i])));
    }
    return most;
}

Tokens some_tokens(int n, int seed) {
    Tokens tokens;
    for (int i = 0; i < n; ++i) {
        tokens.push_back((i * 37 + seed * 11) % 200);
    }
    return tokens;
}

// Greedy tokens by a loop on plain llama_decode.
Tokens by_hand(const Model & model, const Tokens & prompt, int n) {
    const Context ctx = context_of(model, nullptr);
    for (size_t i = 0; i < prompt.size(); i += 16) {
        Tokens part(prompt.begin() + int64_t(i), prompt.begin() + int64_t(std::min(prompt.size(), i + 16)));
        expect(llama_decode(ctx.get(), llama_batch_get_one(part.data(), int32_t(part.size()))) == 0, "by hand");
    }
    Tokens tokens = { greedy(model, ctx.get(), -1) };
    while (int(tokens.size()) < n) {
        expect(llama_decode(ctx.get(), llama_batch_get_one(&tokens.back(), 1)) == 0, "by hand");
        tokens.push_back(greedy(model, ctx.get(), -1));
    }
    return tokens;
}

Tokens by_session(Session & session, const Tokens & prompt, int n) {
    const Sampler sampler;
    session.prompt(prompt.data(), prompt.size());
    Tokens tokens = { llama_sampler_sample(sampler.greedy, session.context(), -1) };
    while (int(tokens.size()) < n) {
        tokens.push_back(session.step(sampler.greedy, tokens.back()));
    }
    return tokens;
}

void without_a_controller_it_is_plain(const Model & model) {
    const Tokens  prompt = some_tokens(37, 1);  // two batches and a part
    const Context ctx    = context_of(model, nullptr);
    Session       session(ctx.get());
    const Tokens  expected = by_hand(model, prompt, 12);
    expect(by_session(session, prompt, 12) == expected, "plain generation");
    expect(session.n_used() == 37 + 11 && session.has_room(256 - 48) && !session.has_room(256 - 47),
           "position and room");
    session.cut(37);
    expect(session.n_used() == 37, "cut");
    session.clear();
    expect(session.n_used() == 0 && by_session(session, prompt, 12) == expected, "clear");
    expect(session.go_back(99) && session.n_used() == 48, "nothing to cut");
}

void generated_tokens_skip_past_the_warm_up(const Model & model) {
    Controller    controller;
    const Context ctx = context_of(model, &controller);
    Session       session(ctx.get(), &controller);
    by_session(session, some_tokens(20, 2), 11);
    const Stats stats = controller.stats();
    expect(stats.tokens == 10 && stats.ffn_skipped == 7, "ten tokens fed back, three of them warm-up");
    session.clear();
    by_session(session, some_tokens(20, 2), 3);
    expect(controller.stats().ffn_skipped == 7, "counted anew after clear()");
}

void sequences_share_a_batch(const Model & model) {
    Controller    controller;
    const Context ctx = context_of(model, &controller, 3);
    Session       session(ctx.get(), &controller);
    const Tokens  prompt = some_tokens(9, 3);
    session.prompt(prompt.data(), prompt.size(), 0);
    session.copy(0, 1);
    session.copy(0, 2);
    std::vector<std::vector<float>> together(3);
    for (int turn = 0; turn < 5; ++turn) {
        for (llama_seq_id seq = 0; seq < 3; ++seq) {
            session.add(10 + seq * 7 + turn, seq, true);
        }
        session.decode();
        for (llama_seq_id seq = 0; seq < 3; ++seq) {
            together[size_t(seq)] = logits_of(ctx.get(), model, seq);
        }
    }
    expect(controller.stats().tokens == 15 && controller.stats().ffn_skipped == 6, "each has its own warm-up");
    for (llama_seq_id seq = 0; seq < 3; ++seq) {
        Controller    own;
        const Context other = context_of(model, &own);
        Session       alone(other.get(), &own);
        alone.prompt(prompt.data(), prompt.size());
        for (int turn = 0; turn < 5; ++turn) {
            alone.generated(10 + seq * 7 + turn);
        }
        const double most = largest_difference(logits_of(other.get(), model), together[size_t(seq)]);
        expect(most < 1e-4, "as alone: " + std::to_string(most));
    }
    session.cut(4, 1);
    expect(session.n_used(0) == 14 && session.n_used(1) == 4, "each has its own length");
    expect_refused([&] { session.add(1, 3, true); }, "sequence 3: the context has 3");
}

void several_take_a_step_in_one_batch(const Model & model) {
    constexpr int       n = 10;
    const Sampler       samplers[3];
    std::vector<Tokens> alone;
    for (int i = 0; i < 3; ++i) {
        Controller    controller;
        const Context ctx = context_of(model, &controller);
        Session       session(ctx.get(), &controller);
        alone.push_back(by_session(session, some_tokens(5 + i * 9, i), n));
    }
    Controller                 controller;
    const Context              ctx = context_of(model, &controller, 4);
    Session                    session(ctx.get(), &controller);
    std::vector<Session::Turn> turns;
    std::vector<Tokens>        together;
    for (int i = 0; i < 3; ++i) {
        const Tokens prompt = some_tokens(5 + i * 9, i);
        session.prompt(prompt.data(), prompt.size(), 1 + i);
        turns.push_back({ 1 + i, llama_sampler_sample(samplers[i].greedy, ctx.get(), -1), samplers[i].greedy });
        together.push_back({ turns.back().token });
    }
    Tokens next(3);
    for (int turn = 1; turn < n; ++turn) {
        session.step(turns, next.data());
        for (size_t i = 0; i < turns.size(); ++i) {
            turns[i].token = next[i];
            together[size_t(turns[i].seq) - 1].push_back(next[i]);
        }
        if (turn == 4) {  // one of them waits
            std::swap(turns[0], turns[2]);
            turns.pop_back();
        }
    }
    alone[0].resize(5);
    expect(together == alone, "each as alone");
    const Stats stats = controller.stats();
    expect(stats.tokens == 4 + 9 + 9 && stats.ffn_skipped == 1 + 6 + 6, "each has its own warm-up");
}

void what_would_come_out_again_is_kept(const Model & model) {
    Controller    controller;
    const Context ctx = context_of(model, &controller, 2);
    Session       session(ctx.get(), &controller);
    const Tokens  text = some_tokens(40, 5);
    const auto    read = [&](size_t n_prompt) {
        session.prompt(text.data(), n_prompt);
        session.prompt(text.data() + n_prompt, text.size() - n_prompt, 0, Fed::generated);
    };
    expect(session.keep(text.data(), 40, 10) == 0, "nothing is there");
    read(10);
    session.copy(0, 1);
    expect(session.keep(text.data(), 40, 10) == 39 && session.n_used() == 39, "all but the last token");
    expect(session.n_used(1) == 0, "of one sequence");
    Tokens other = text;
    other[30]    = 199;
    expect(session.keep(other.data(), 40, 10) == 30, "up to where they differ");
    expect(session.keep(text.data(), 40, 20) == 10, "a prompt does not build on what skipped");
    session.clear();
    read(40);
    expect(session.keep(text.data(), 40, 10) == 10, "what skips is no prompt");

    const Context plain = context_of(model, nullptr);
    Session       without(plain.get());
    without.prompt(text.data(), text.size());
    expect(without.keep(text.data(), 40, 40) == 0 && without.n_used() == 0, "nobody knows what is there");
}

void a_failure_leaves_no_rows(const Model & model) {
    for (const bool skips : { false, true }) {
        Controller    controller;
        const Context ctx = context_of(model, skips ? &controller : nullptr);
        Session       session(ctx.get(), skips ? &controller : nullptr);
        int32_t       status = 0;
        try {
            session.generated(99999);
        } catch (const DecodeError & error) {
            status = error.status;
            expect(std::string(error.what()) == "llama_decode returned -1: the batch is invalid", error.what());
        }
        expect(status == -1 && session.n_rows() == 0 && session.n_used() == 0, "the status, and an empty batch");
        session.generated(5);
        expect(session.n_used() == 1, "goes on");
    }
    expect(decode_status(0).empty() && decode_status(1).find("context is full") != std::string::npos, "decode_status");
}

// An exception leaves a decode as any other: what lies on its way is cleared away, and all goes on afterwards. (GCC 12.2 drops
// what a destructor stores before a loop at its end where an exception runs it: a guard of that kind would fail here.)
void what_is_aborted_unwinds(const Model & model) {
    const auto abort_at_once = [](void *) { return true; };
    const auto aborts        = [](auto decode) {
        try {
            decode();
        } catch (const DecodeError & error) {
            return error.status == 2;
        }
        return false;
    };
    const Tokens  prompt = some_tokens(20, 4);
    Controller    controller;
    const Context ctx   = context_of(model, &controller);
    const Context plain = context_of(model, nullptr);
    Session       session(ctx.get(), &controller), other(plain.get());
    controller.set_reuse(Reuse::full);
    by_session(session, prompt, 9);
    by_session(other, prompt, 9);
    const llama_pos kept = controller.first_to_repeat(0, session.n_used());
    expect(kept == 23 && session.n_used() == 28, "three tokens are warm-up, what follows them skipped");

    llama_set_abort_callback(ctx.get(), abort_at_once, nullptr);
    llama_set_abort_callback(plain.get(), abort_at_once, nullptr);
    expect(aborts([&] { session.prompt(prompt.data(), 1); }), "while it is computed again");
    expect(session.n_used() == kept && session.n_rows() == 0, "what was computed again is not there");
    expect(aborts([&] { session.prompt(prompt.data(), 1); }), "a prompt");
    expect(aborts([&] { session.generated(7); }), "a generated token");
    expect(aborts([&] { other.generated(7); }), "without a controller");
    other.cut(kept);
    llama_set_abort_callback(ctx.get(), nullptr, nullptr);
    llama_set_abort_callback(plain.get(), nullptr, nullptr);

    controller.reset_stats();
    session.prompt(prompt.data(), prompt.size());
    other.prompt(prompt.data(), prompt.size());
    expect(logits_of(ctx.get(), model) == logits_of(plain.get(), model), "goes on as plain llama.cpp does");
    for (int i = 0; i < 4; ++i) {
        session.generated(3 + i);
    }
    expect(controller.stats().tokens == 4 && controller.stats().ffn_skipped == 1, "and skips again");
}

// ---- choices, and settings that take turns ----

// Chooses nothing, and says so.
llama_sampler * failing_sampler() {
    static llama_sampler_i interface{};
    interface.name  = [](const llama_sampler *) { return "failing"; };
    interface.apply = [](llama_sampler *, llama_token_data_array *) { throw std::runtime_error("it fits nothing"); };
    return llama_sampler_init(&interface, nullptr);
}

void choices_are_those_of_each_row(const Model & model) {
    Controller    controller;
    const Context ctx = context_of(model, &controller, 3);
    Session       session(ctx.get(), &controller);
    const Sampler sampler;
    const Sampler failing{ failing_sampler() };
    const Tokens  prompt = some_tokens(9, 3);

    std::vector<Row> rows;
    for (size_t i = 0; i < prompt.size(); ++i) {
        const bool last = i + 1 == prompt.size();
        rows.push_back({ prompt[i], 0, last ? sampler.greedy : nullptr, last ? std::optional<int>(3) : std::nullopt });
    }
    const std::vector<Choice> first = choose(session, rows, Fed::prompt);
    expect(first.size() == 1 && first[0].token == by_hand(model, prompt, 1)[0], "of the only row with a sampler");
    expect(first[0].likeliest.size() == 3 && first[0].likeliest[0].first == first[0].token, "the likeliest first");
    expect(first[0].likeliest[0].second == first[0].log_likelihood && first[0].log_likelihood < 0.0, "its likelihood");
    expect(first[0].likeliest[1].second <= first[0].log_likelihood, "in order");
    expect(!first[0].left_out.may_skip && first[0].left_out.ffn.empty(), "a prompt runs in full");

    session.copy(0, 1);
    session.copy(0, 2);
    for (int turn = 0; turn < 5; ++turn) {
        const std::vector<Choice> found = choose(
            session, { { 5, 0, sampler.greedy, {} }, { 6, 1, failing.greedy, 1 }, { 7, 2, sampler.greedy, 999999 } },
            Fed::generated);
        expect(found.size() == 3 && found[1].error == "it fits nothing" && found[1].token == LLAMA_TOKEN_NULL,
               "a sampler that fails");
        expect(found[0].token == greedy(model, ctx.get(), 0) && found[2].token == greedy(model, ctx.get(), 2),
               "has no part in the others");
        double sum = 0.0;
        for (const auto & [token, likelihood] : found[2].likeliest) {
            sum += std::exp(likelihood);
        }
        expect(found[0].likeliest.empty() && int32_t(found[2].likeliest.size()) == session.n_vocab(),
               "as many as asked");
        expect(std::abs(sum - 1.0) < 1e-6, "probabilities of all are one");
        const bool skips = turn >= 3;
        expect(found[0].left_out.may_skip == skips && found[0].left_out.ffn == std::vector<int32_t>(skips, 1),
               "layer 1 past the warm-up");
        expect(std::abs(found[0].left_out.skip_ratio - (skips ? 1.0 / controller.n_layer() : 0.0)) < 1e-12,
               "of blocks");
    }
}

void settings_take_turns(const Model & model) {
    Config layers;
    layers.max_skip      = 0;
    layers.warm_up_index = 0;
    layers.layers        = std::vector<int>{ 1, 2 };
    Config attention     = layers;
    attention.layers.reset();
    attention.attention_layers = std::vector<int>{ 3 };
    Config dense;
    dense.policy = Policy::dense;

    Controller                                                     controller;
    const Context                                                  ctx = context_of(model, &controller, 3);
    Session                                                        session(ctx.get(), &controller);
    const Config                                                   own      = controller.config();
    const std::vector<std::shared_ptr<const Controller::Prepared>> settings = { controller.prepare(layers),
                                                                                controller.prepare(attention),
                                                                                controller.prepare(dense) };
    expect(controller.config().layers == own.layers, "prepare() sets nothing");
    const Tokens prompt = some_tokens(9, 3);
    for (llama_seq_id seq = 0; seq < 3; ++seq) {
        session.prompt(prompt.data(), prompt.size(), seq);
    }
    std::vector<std::vector<float>> in_turns(3);
    for (int turn = 0; turn < 4; ++turn) {
        for (llama_seq_id seq = 0; seq < 3; ++seq) {
            controller.use(*settings[size_t(seq)]);
            session.generated(20 + turn, seq);
            in_turns[size_t(seq)] = logits_of(ctx.get(), model);
            const RowStats stats  = controller.row_stats(0);
            expect(stats.ffn == (seq == 0 ? std::vector<int32_t>{ 1, 2 } : std::vector<int32_t>()), "its own layers");
            expect(stats.attention == std::vector<int32_t>(seq == 1, 3), "and attention");
            expect((stats.skip_ratio > 0.0) == (seq < 2) && !stats.kept, "its own ratio");
        }
    }
    expect(controller.stats().tokens == 12 && controller.stats().ffn_skipped == 8, "counted together");
    for (llama_seq_id seq = 0; seq < 3; ++seq) {
        Controller    other;
        const Context alone = context_of(model, &other);
        Session       single(alone.get(), &other);
        other.set_config(seq == 0 ? layers : seq == 1 ? attention : dense);
        single.prompt(prompt.data(), prompt.size());
        for (int turn = 0; turn < 4; ++turn) {
            single.generated(20 + turn);
        }
        expect(largest_difference(logits_of(alone.get(), model), in_turns[size_t(seq)]) < 1e-4, "as alone");
    }
    expect_refused([&] { controller.row_stats(1); }, "row: 1 is outside [0, 1)");
    Config wrong = layers;
    wrong.layers = std::vector<int>{ 999 };
    expect_refused([&] { controller.prepare(wrong); }, "layers: 999");
    session.clear();
    controller.probe(ctx.get());
    expect_refused([&] { controller.use(*settings[0]); }, "before the context was probed");
}

}  // namespace

int main(int argc, char ** argv) {
    require(argc == 2, "usage: test_session MODEL");
    const Model model = load(argv[1]);
    without_a_controller_it_is_plain(model);
    generated_tokens_skip_past_the_warm_up(model);
    sequences_share_a_batch(model);
    several_take_a_step_in_one_batch(model);
    what_would_come_out_again_is_kept(model);
    a_failure_leaves_no_rows(model);
    what_is_aborted_unwinds(model);
    choices_are_those_of_each_row(model);
    settings_take_turns(model);
    return result();
}
