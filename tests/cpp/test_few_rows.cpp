// Property: in a batch of a few rows, each leaves out what it does alone, by the products themselves; in one of more
// rows llama.cpp's own products compute what is left.
#include "channels/channel_kernels.h"
#include "clients/client.h"
#include "expect.h"
#include "ffnskip/ffnskip.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

using namespace ffnskip;

namespace {

constexpr llama_seq_id k_n_seq = 9;  // sequences

// Looks at each node before it is computed, after the controller has.
bool count_operations(ggml_tensor * node, bool ask, void * n_operations) {
    *static_cast<int *>(n_operations) += ask && node->op == GGML_OP_CUSTOM;
    return false;
}

class Sequences {
public:
    explicit Sequences(const Model & model) : model_(model) {
        llama_context_params params = exact_params();
        params.n_ctx                = 512;
        params.n_seq_max            = k_n_seq;
        params.cb_eval              = count_operations;
        params.cb_eval_user_data    = &n_operations_;
        controller_.attach(params);
        ctx_ = make_context(model, params);
        controller_.probe(ctx_.get());
        Config config;
        config.policy             = Policy::channels;
        config.warm_up_index      = 0;
        config.channel_thresholds = std::vector<double>(size_t(controller_.n_layer()) * 4, 0.7);
        controller_.set_config(config);
        for (const LayerInput & input : controller_.channel_inputs()) {
            n_products_ += int(input.weights.size());
        }
        for (llama_seq_id seq = 0; seq < k_n_seq; ++seq) {
            decode({ seq }, 0, RowKind::prompt);
        }
    }

    // One token of each of these sequences. Logits of all, one after the other.
    std::vector<float> decode(const std::vector<llama_seq_id> & sequences, llama_pos position, RowKind kind) {
        Batch batch;
        for (const llama_seq_id seq : sequences) {
            batch.add((seq * 37 + position * 11) % 200, position, seq, true);
        }
        n_operations_ = 0;
        const std::vector<RowKind> kinds(sequences.size(), kind);
        expect(controller_.decode(ctx_.get(), batch.rows(), kinds.data()) == 0, "decode");
        std::vector<float> logits;
        for (int32_t i = 0; i < batch.n_rows(); ++i) {
            const float * row = llama_get_logits_ith(ctx_.get(), i);
            logits.insert(logits.end(), row, row + llama_vocab_n_tokens(llama_model_get_vocab(model_.get())));
        }
        return logits;
    }

    Stats stats() const { return controller_.stats(); }
    int   n_operations() const { return n_operations_; }  // of the last decode
    int   n_products() const { return n_products_; }

private:
    const Model & model_;
    Controller    controller_;
    Context       ctx_;
    int           n_operations_ = 0, n_products_ = 0;
};

}  // namespace

int main(int argc, char ** argv) {
    require(argc == 2, "usage: test_few_rows MODEL");
    const Model model = load(argv[1]);
    const int   few   = channel_kernels().few_rows;

    for (llama_seq_id n = 1; n <= k_n_seq; ++n) {
        const std::string         what = std::to_string(n) + " rows: ";
        Sequences                 together(model), alone(model);
        std::vector<llama_seq_id> all;
        std::vector<float>        expected;
        for (llama_seq_id seq = 0; seq < n; ++seq) {
            all.push_back(seq);
            const std::vector<float> logits = alone.decode({ seq }, 1, RowKind::skippable);
            expected.insert(expected.end(), logits.begin(), logits.end());
            expect(alone.n_operations() == alone.n_products(), what + "a row alone, by operations");
        }
        const std::vector<float> got = together.decode(all, 1, RowKind::skippable);
        expect(together.n_operations() == (n <= few ? together.n_products() : 0), what + "by operations, or by none");

        double worst = 0.0, largest = 0.0;
        for (size_t i = 0; i < got.size(); ++i) {
            worst   = std::max(worst, double(std::fabs(got[i] - expected[i])));
            largest = std::max(largest, double(std::fabs(expected[i])));
        }
        expect(worst < 1e-3 * largest, what + "the same as alone, but for " + std::to_string(worst / largest));
        const Stats of_all = together.stats(), of_each = alone.stats();
        expect(of_all.tokens == uint64_t(n) && of_all.bytes_left_out > 0, what + "channels were left out");
        expect(of_all.bytes_left_out == of_each.bytes_left_out, what + "as much as alone");
        together.decode(all, 2, RowKind::prompt);
        expect(together.n_operations() == 0, what + "in full, none");
    }
    return result();
}
