// Joins the parts: follows each evaluation node by node, asks the policy at each FFN block, edits the graph.
#include "ffnskip/controller.h"

#include "graph_edit.h"
#include "graph_map.h"
#include "policy.h"
#include "rows.h"
#include "similarity.h"

#include <algorithm>
#include <exception>
#include <limits>
#include <string>
#include <utility>

namespace ffnskip {
namespace {

constexpr size_t k_max_maps = 8;  // graph structures remembered: with and without LoRA, control vector, offloading

std::string architecture(const llama_model * model) {
    char text[64] = "?";
    llama_model_meta_val_str(model, "general.architecture", text, sizeof(text));
    return text;
}

llama_seq_id sequence(const llama_batch & batch, int32_t row) {
    return batch.seq_id == nullptr ? 0 : batch.seq_id[row][0];
}

void require_one_sequence(const llama_batch & batch) {
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        if ((batch.n_seq_id != nullptr && batch.n_seq_id[i] != 1) || sequence(batch, i) != sequence(batch, 0)) {
            throw std::invalid_argument("decode: rows that may skip must belong to one sequence per call");
        }
    }
}

}  // namespace

struct Controller::Impl {
    // How the nodes of the running evaluation are treated.
    enum class Mode {
        idle,       // dense: edits of earlier evaluations are undone, nothing else
        probing,    // learning, and nothing is computed
        following,  // the structure is known: blocks are skipped and checked
        learning,   // the structure turned out to be new: dense, and decode() will repeat the batch
    };

    // ---- the model ----
    int                   n_layer   = 0;
    const ggml_tensor *   embedding = nullptr;  // weight read by the first node of every evaluation
    std::vector<uint8_t>  skippable;
    std::vector<GraphMap> maps;                 // most recently followed first

    Config   config = dense_config();
    Settings settings;

    // ---- the running decode ----
    const llama_batch *     batch = nullptr;
    const RowKind *         kinds = nullptr;
    std::vector<TokenState> rows;               // [batch->n_tokens]
    std::vector<float>      similarity;         // [batch->n_tokens, n_layer] while tracing
    uint64_t                checks = 0;
    bool                    repeat = false;     // the batch met a graph of unknown structure
    std::exception_ptr      error;              // thrown in the callback, kept until llama_decode returned

    // ---- the running evaluation: one ubatch, rows [first_row, next_row) of the batch ----
    Mode                       mode = Mode::idle;
    bool                       probe_armed = false;
    GraphLearner               learner{ 0 };
    const GraphMap *           map = nullptr;
    std::vector<ggml_tensor *> seen;            // [n_seen] nodes asked so far
    size_t                     n_seen    = 0;
    int32_t                    first_row = 0;
    int32_t                    next_row  = 0;

    // ---- the current block ----
    int  layer  = -1;
    bool drop   = false;   // every row skips it
    bool checks_some   = false;
    bool restores_some = false;  // some rows skip it, others don't: computed, then h is put back into those rows

    std::vector<float> f_rows;  // [rows, n_embd] copy of f, parallel blocks
    std::vector<float> scratch[2];

    Stats stats;
    bool  tracing = false;
    Trace trace;

    static Config dense_config() {
        Config config;
        config.policy = Policy::dense;
        return config;
    }

    static bool callback(ggml_tensor * node, bool ask, void * user_data) {
        auto & self = *static_cast<Impl *>(user_data);
        try {
            if (ask) {
                return self.ask(node);
            }
            self.observe(node);
        } catch (...) {
            self.error = std::current_exception();
            self.mode  = Mode::idle;
        }
        return !ask;  // false from an observation would end the split and report success
    }

    // Before `node` is computed. True: observe() wants to see its result.
    bool ask(ggml_tensor * node) {
        restore(node);
        if (node->op == GGML_OP_GET_ROWS) {
            begin_evaluation(node);
        }
        switch (mode) {
            case Mode::idle:
                return false;
            case Mode::following:
                return follow(node);
            case Mode::probing:
                learner.add(node);
                leave_out(node);
                return false;
            case Mode::learning:
                learner.add(node);
                return false;
        }
        return false;
    }

    void begin_evaluation(const ggml_tensor * node) {
        if (probe_armed && embedding_weight(node) != nullptr) {
            embedding   = node->src[0];
            probe_armed = false;
            mode        = Mode::probing;
            return;
        }
        if (mode == Mode::probing || embedding == nullptr || node->src[0] != embedding) {
            return;
        }
        keep_learnt();
        mode      = Mode::idle;
        first_row = next_row;
        next_row += int32_t(node->src[1]->ne[0]);
        if (kinds == nullptr || next_row > batch->n_tokens) {
            return;
        }
        const bool any = std::any_of(rows.begin() + first_row, rows.begin() + next_row,
                                     [](const TokenState & row) { return row.may_skip(); });
        if (any) {
            mode   = Mode::following;
            map    = &maps.front();
            n_seen = 0;
            layer  = -1;
            seen.resize(map->nodes.size());
        }
    }

    bool follow(ggml_tensor * node) {
        if (n_seen == map->nodes.size() || !matches(map->nodes[n_seen], node, seen.data())) {
            if (!find_map(node)) {
                learn_from_here(node);
                return false;
            }
        }
        const Node & expected = map->nodes[n_seen];
        seen[n_seen++]        = node;
        if (expected.role == Role::none) {
            return false;
        }
        const Block & block = map->blocks[size_t(expected.layer)];
        if (block.layer != layer) {
            enter(block);
        }
        switch (expected.role) {
            case Role::body:
            case Role::branch:
                if (drop) {
                    leave_out(node);
                    return false;
                }
                return expected.role == Role::branch && (checks_some || restores_some);
            case Role::residual_add:
                return add_residual(node, block);
            case Role::layer_output:
                return checks_some;
            case Role::none:
                break;
        }
        return false;
    }

    // The first node of a block: all that is known of its input is known now.
    void enter(const Block & block) {
        layer            = block.layer;
        int n_skip       = 0;
        checks_some      = false;
        for (int32_t i = first_row; i < next_row; ++i) {
            n_skip += rows[size_t(i)].skips(layer);
            checks_some = checks_some || rows[size_t(i)].checks(layer);
        }
        drop          = n_skip == next_row - first_row;
        restores_some = n_skip > 0 && !drop;
    }

    bool add_residual(ggml_tensor * add, const Block & block) {
        const bool wanted   = drop || checks_some || restores_some;
        const bool lost_h   = block.form == Form::sequential && !drop && add->data == add->src[block.h_src]->data;
        const bool no_match = ggml_nrows(add) != next_row - first_row;
        if (wanted && (lost_h || no_match)) {
            --n_seen;
            learn_from_here(add);
            return false;
        }
        if (drop) {
            pass_h(add, block.h_src);
            return false;
        }
        return block.form == Form::sequential && wanted;
    }

    // Another known structure that begins as this evaluation did and goes on with `node`.
    bool find_map(const ggml_tensor * node) {
        for (size_t m = 0; m < maps.size(); ++m) {
            const GraphMap & other = maps[m];
            bool             fits  = &other != map && other.nodes.size() > n_seen && matches(other.nodes[n_seen], node, seen.data());
            for (size_t i = 0; fits && i < n_seen; ++i) {
                fits = matches_unedited(other.nodes[i], seen[i]);
            }
            if (fits) {
                std::rotate(maps.begin(), maps.begin() + std::ptrdiff_t(m), maps.begin() + std::ptrdiff_t(m) + 1);
                map = &maps.front();
                seen.resize(std::max(seen.size(), map->nodes.size()));
                return true;
            }
        }
        return false;
    }

    // Compares a node that this evaluation may have edited already: as it was, then edited again.
    bool matches_unedited(const Node & expected, ggml_tensor * node) const {
        const ggml_tensor edited = *node;
        restore(node);
        const bool same = matches(expected, node, seen.data());
        node->op     = edited.op;
        node->flags  = edited.flags;
        node->src[0] = edited.src[0];
        node->src[1] = edited.src[1];
        return same;
    }

    // The graph is of unknown structure, so this evaluation is spoilt: learn it, and repeat the batch.
    void learn_from_here(const ggml_tensor * node) {
        learner = GraphLearner(n_layer);
        for (size_t i = 0; i < n_seen; ++i) {
            restore(seen[i]);
            learner.add(seen[i]);
        }
        learner.add(node);
        mode   = Mode::learning;
        repeat = true;
    }

    void keep_learnt() {
        if (mode != Mode::learning) {
            return;
        }
        maps.insert(maps.begin(), learner.finish());
        maps.resize(std::min(maps.size(), k_max_maps));
        for (const Block & block : maps.front().blocks) {
            if (block.layer >= 0 && settings.candidate[size_t(block.layer)] && !block.refusal.empty()) {
                throw Unsupported("layer " + std::to_string(block.layer) + " can no longer be skipped: " + block.refusal);
            }
        }
    }

    // After the node was computed: the state of Algorithm 1 moves on, and skipping rows of a mixed batch get h back.
    void observe(ggml_tensor * node) {
        if (mode != Mode::following) {
            return;
        }
        if (ggml_nrows(node) != next_row - first_row) {
            throw Unsupported("node '" + std::string(node->name) + "' has " + std::to_string(ggml_nrows(node)) + " rows for " +
                              std::to_string(next_row - first_row) + " tokens");
        }
        const Block & block = map->blocks[size_t(layer)];
        switch (map->nodes[n_seen - 1].role) {
            case Role::residual_add:
                for_rows(
                    [&](int64_t r) {
                        const ggml_tensor * h = node->src[block.h_src];
                        return cosine(read_row(h, r, scratch[0]), read_row(node, r, scratch[1]), node->ne[0]);
                    },
                    [&](int64_t r) { copy_row(node->src[block.h_src], node, r, scratch[0]); });
                break;
            case Role::branch:
                if (block.form == Form::in_place) {
                    for_rows(
                        [&](int64_t r) {
                            const ggml_tensor * h = seen[size_t(block.h)];
                            return cosine_with_sum(read_row(h, r, scratch[0]), read_row(node, r, scratch[1]), node->ne[0]);
                        },
                        [&](int64_t r) { zero_row(node, r); });
                } else {
                    observe_parallel_branch(node);
                }
                break;
            case Role::layer_output:
                for_rows(
                    [&](int64_t r) {
                        return cosine_with_difference(read_row(node, r, scratch[0]), &f_rows[size_t(r * node->ne[0])], node->ne[0]);
                    },
                    [](int64_t) {});
                break;
            case Role::body:
            case Role::none:
                break;
        }
    }

    // f is gone by the time the layer's output is known: keep it. Rows that skip lose it here.
    void observe_parallel_branch(ggml_tensor * f) {
        const int64_t n = f->ne[0];
        f_rows.resize(size_t(n * (next_row - first_row)));
        for (int64_t r = 0; r < next_row - first_row; ++r) {
            const TokenState & row = rows[size_t(first_row + r)];
            if (row.checks(layer)) {
                std::memcpy(&f_rows[size_t(r * n)], read_row(f, r, scratch[0]), size_t(n) * sizeof(float));
            }
            if (row.skips(layer)) {
                zero_row(f, r);
            }
        }
    }

    // Row r of the ubatch: `check` yields the similarity of a checking row, `put_back` removes f from a skipping one.
    template <typename Check, typename PutBack>
    void for_rows(Check check, PutBack put_back) {
        for (int64_t r = 0; r < next_row - first_row; ++r) {
            TokenState & row = rows[size_t(first_row + r)];
            if (row.skips(layer)) {
                put_back(r);
            } else if (row.checks(layer)) {
                const float value = check(r);
                row.observe(settings, layer, value);
                ++checks;
                if (tracing) {
                    similarity[size_t(first_row + r) * size_t(n_layer) + size_t(layer)] = value;
                }
            }
        }
    }

    void begin_decode(const llama_batch & now, const RowKind * now_kinds) {
        batch    = &now;
        kinds    = now_kinds;
        mode     = Mode::idle;
        next_row = 0;
        checks   = 0;
        repeat   = false;
        error    = nullptr;
        if (kinds == nullptr) {
            return;
        }
        rows.resize(size_t(now.n_tokens));
        bool any = false;
        for (int32_t i = 0; i < now.n_tokens; ++i) {
            if (kinds[i] == RowKind::skippable && settings.skips_anything()) {
                rows[size_t(i)].begin(settings, now.pos == nullptr ? i : now.pos[i], now.token == nullptr ? 0 : now.token[i]);
                any = true;
            } else {
                rows[size_t(i)].begin_full();
            }
        }
        if (any) {
            require_one_sequence(now);
        }
        if (tracing) {
            similarity.assign(size_t(now.n_tokens) * size_t(n_layer), std::numeric_limits<float>::quiet_NaN());
        }
    }

    void end_decode() {
        if (error == nullptr) {
            try {
                keep_learnt();
            } catch (...) {
                error = std::current_exception();
            }
        }
        mode = Mode::idle;
        if (error != nullptr) {
            std::rethrow_exception(std::exchange(error, nullptr));
        }
    }

    // Counts what the decode did, once it is known to stand.
    void commit() {
        if (kinds == nullptr) {
            return;
        }
        const size_t n = size_t(n_layer);
        stats.checks += checks;
        for (int32_t i = 0; i < batch->n_tokens; ++i) {
            const TokenState & row = rows[size_t(i)];
            if (kinds[i] == RowKind::prompt) {
                continue;
            }
            ++stats.tokens;
            for (size_t il = 0; il < n; ++il) {
                stats.ffn_total += has_ffn(il);
                stats.ffn_skipped += row.skips(int(il));
                stats.skipped_per_layer[il] += row.skips(int(il));
            }
            stats.tokens_never_tripped += settings.policy == Policy::ffn_skip && row.may_skip() && !row.tripped();
            if (tracing) {
                append_trace(i, row);
            }
        }
    }

    bool has_ffn(size_t il) const { return maps.empty() || maps.front().blocks[il].layer >= 0; }

    void append_trace(int32_t i, const TokenState & row) {
        const auto first = similarity.begin() + std::ptrdiff_t(i) * n_layer;
        trace.similarity.insert(trace.similarity.end(), first, first + n_layer);
        for (int il = 0; il < n_layer; ++il) {
            trace.skipped.push_back(row.skips(il));
        }
        ++trace.n_tokens;
    }

    void learn_model(llama_context * ctx, llama_memory_t memory) {
        const llama_model * model    = llama_get_model(ctx);
        const int32_t       n_tokens = int32_t(std::min<uint32_t>(2, llama_n_ubatch(ctx)));
        llama_token         bos      = llama_vocab_bos(llama_model_get_vocab(model));
        bos                          = bos < 0 ? 0 : bos;

        // Two tokens and one output: a residual add that has lost rows to pruning shows.
        llama_token  tokens[2] = { bos, bos };
        llama_pos    pos[2]    = { 0, 1 };
        llama_seq_id seq       = 0, *seqs[2] = { &seq, &seq };
        int32_t      n_seq[2]  = { 1, 1 };
        int8_t       logits[2] = { int8_t(n_tokens == 1), 1 };
        llama_batch  probe     = { n_tokens, tokens, nullptr, pos, n_seq, seqs, logits };

        begin_decode(probe, nullptr);
        embedding   = nullptr;
        learner     = GraphLearner(n_layer);
        probe_armed = true;
        const int32_t status = llama_decode(ctx, probe);
        const bool    found  = mode == Mode::probing;
        probe_armed          = false;
        mode                 = Mode::idle;
        llama_memory_clear(memory, true);
        llama_perf_context_reset(ctx);
        if (error != nullptr) {
            std::rethrow_exception(std::exchange(error, nullptr));
        }
        if (status != 0) {
            throw std::runtime_error("probe: llama_decode returned " + std::to_string(status));
        }
        maps.clear();
        if (found) {
            maps.push_back(learner.finish());
        }
    }

    void judge_blocks(const std::string & arch) {
        skippable.assign(size_t(n_layer), 0);
        if (!maps.empty()) {
            for (const Block & block : maps.front().blocks) {
                const bool last = block.layer == n_layer - 1;
                if (block.layer >= 0 && !last && !block.refusal.empty()) {
                    throw Unsupported("architecture '" + arch + "', layer " + std::to_string(block.layer) +
                                      ": the FFN block can't be skipped: " + block.refusal);
                }
                if (block.layer >= 0 && !last) {
                    skippable[size_t(block.layer)] = 1;
                }
            }
        }
        if (std::count(skippable.begin(), skippable.end(), uint8_t(1)) == 0) {
            throw Unsupported("architecture '" + arch + "' has no FFN block that can be skipped");
        }
    }
};

Controller::Controller() : impl_(std::make_unique<Impl>()) {}
Controller::~Controller() = default;

void Controller::attach(llama_context_params & params) {
    params.cb_eval           = &Impl::callback;
    params.cb_eval_user_data = impl_.get();
}

void Controller::probe(llama_context * ctx) {
    const llama_model *  model  = llama_get_model(ctx);
    const std::string    arch   = architecture(model);
    const llama_memory_t memory = llama_get_memory(ctx);
    if (memory == nullptr || llama_model_has_encoder(model) || !llama_model_has_decoder(model)) {
        throw Unsupported("architecture '" + arch + "' does not generate token by token; there is no FFN block to skip");
    }
    if (llama_memory_seq_pos_max(memory, 0) >= 0) {
        throw std::invalid_argument("probe: the context is in use; its memory must be empty");
    }
    impl_->n_layer = llama_model_n_layer(model);
    if (impl_->n_layer > TokenState::k_max_layers) {
        throw Unsupported("architecture '" + arch + "' has " + std::to_string(impl_->n_layer) + " layers, more than " +
                          std::to_string(TokenState::k_max_layers));
    }
    impl_->settings                = Settings();
    impl_->config                  = Impl::dense_config();
    impl_->stats.skipped_per_layer = std::vector<uint64_t>(size_t(impl_->n_layer), 0);
    impl_->skippable.clear();
    impl_->learn_model(ctx, memory);
    impl_->judge_blocks(arch);
}

int Controller::n_layer() const {
    return impl_->n_layer;
}

const std::vector<uint8_t> & Controller::skippable() const {
    return impl_->skippable;
}

void Controller::set_config(const Config & config) {
    config.validate();
    const bool known = std::count(impl_->skippable.begin(), impl_->skippable.end(), uint8_t(1)) > 0;
    if (!known && config.policy != Policy::dense) {
        throw Unsupported("policy '" + std::string(policy_name(config.policy)) +
                          "' needs a model whose FFN blocks are known: probe() did not succeed");
    }
    impl_->settings = resolve(config, impl_->skippable);
    impl_->config   = config;
}

const Config & Controller::config() const {
    return impl_->config;
}

const Settings & Controller::settings() const {
    return impl_->settings;
}

RowKind Controller::row_kind(int64_t generated_index) const {
    return generated_index >= impl_->settings.warm_up_index ? RowKind::skippable : RowKind::warm_up;
}

int32_t Controller::decode(llama_context * ctx, const llama_batch & batch, const RowKind * kinds) {
    Impl &               self   = *impl_;
    const llama_memory_t memory = llama_get_memory(ctx);
    const bool           counts = kinds != nullptr && batch.n_tokens > 0 && self.n_layer > 0;

    // Each attempt may meet one more unknown graph structure per ubatch; a model has few.
    for (size_t attempt = 0; attempt <= k_max_maps; ++attempt) {
        const llama_seq_id seq   = sequence(batch, 0);
        const llama_pos    first = !counts ? 0 : batch.pos != nullptr ? batch.pos[0] : llama_memory_seq_pos_max(memory, seq) + 1;

        self.begin_decode(batch, counts ? kinds : nullptr);
        const int32_t status = llama_decode(ctx, batch);
        self.end_decode();
        if (status != 0) {
            return status;
        }
        if (!self.repeat) {
            self.commit();
            return 0;
        }
        if (!llama_memory_seq_rm(memory, seq, first, -1)) {
            throw Unsupported("the graph of this model changed and its memory can't go back to repeat the token");
        }
    }
    throw Unsupported("the graph of this model changes from one evaluation to the next");
}

Stats Controller::stats() const {
    return impl_->stats;
}

void Controller::reset_stats() {
    impl_->stats                   = Stats();
    impl_->stats.skipped_per_layer = std::vector<uint64_t>(size_t(impl_->n_layer), 0);
}

void Controller::start_trace() {
    impl_->trace         = Trace();
    impl_->trace.n_layer = impl_->n_layer;
    impl_->tracing       = true;
}

Trace Controller::stop_trace() {
    impl_->tracing = false;
    return std::exchange(impl_->trace, Trace());
}

}  // namespace ffnskip
