#include "probe.h"

#include "ffnskip/errors.h"
#include "ffnskip/rows.h"
#include "graph_edit.h"
#include "hash.h"
#include "policy.h"
#include "ubatches.h"

#include <ggml-backend.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <stdexcept>

namespace ffnskip {
namespace {

// Of the vectors by name: graphs of other versions or devices may visit them in another order, or twice.
uint64_t hash(std::vector<const ggml_tensor *> vectors) {
    std::sort(vectors.begin(), vectors.end(),
              [](const ggml_tensor * a, const ggml_tensor * b) { return std::strcmp(a->name, b->name) < 0; });
    vectors.erase(std::unique(vectors.begin(), vectors.end()), vectors.end());

    uint64_t             state = k_hash_of_nothing;
    std::vector<uint8_t> bytes;
    for (const ggml_tensor * vector : vectors) {
        bytes.resize(ggml_nbytes(vector));
        ggml_backend_tensor_get(vector, bytes.data(), 0, bytes.size());
        add_to_hash(state, vector->name, std::strlen(vector->name));
        add_to_hash(state, bytes.data(), bytes.size());
    }
    return state;
}

bool is_block_vector(const ggml_tensor * tensor) {
    return tensor != nullptr && tensor->op == GGML_OP_NONE && tensor->type == GGML_TYPE_F32 &&
           ggml_nrows(tensor) == 1 && std::strncmp(tensor->name, "blk.", 4) == 0 && tensor->buffer != nullptr;
}

std::string architecture(const llama_model * model) {
    char text[64] = "?";
    llama_model_meta_val_str(model, "general.architecture", text, sizeof(text));
    return text;
}

}  // namespace

Probe::Probe(llama_context * ctx)
    : arch(architecture(llama_get_model(ctx))), n_layer(llama_model_n_layer(llama_get_model(ctx))), ctx_(ctx),
      learner_(n_layer) {
    const llama_model *  model  = llama_get_model(ctx);
    const llama_memory_t memory = llama_get_memory(ctx);
    const llama_seq_id   n_seq  = llama_seq_id(llama_n_seq_max(ctx));
    if (memory == nullptr || llama_model_has_encoder(model) || !llama_model_has_decoder(model)) {
        throw Unsupported("architecture '" + arch +
                          "' does not generate token by token; there is no FFN block to skip");
    }
    for (llama_seq_id seq = 0; seq < n_seq; ++seq) {
        if (llama_memory_seq_pos_max(memory, seq) >= 0) {
            throw std::invalid_argument("probe: the context is in use (sequence " + std::to_string(seq) +
                                        "); its memory must be empty");
        }
    }
    if ((llama_model_is_hybrid(model) || llama_model_is_recurrent(model)) && llama_n_rs_seq(ctx) > 0) {
        throw Unsupported("architecture '" + arch + "' with n_rs_seq = " + std::to_string(llama_n_rs_seq(ctx)) +
                          ": batches are then split in a way that is not known; use n_rs_seq = 0");
    }
    if (n_layer > TokenState::k_max_layers) {
        throw Unsupported("architecture '" + arch + "' has " + std::to_string(n_layer) + " layers, more than " +
                          std::to_string(TokenState::k_max_layers));
    }
    if (n_seq > llama_seq_id(Ubatches::k_max_sequences)) {
        throw Unsupported("the context has " + std::to_string(n_seq) + " sequences, more than " +
                          std::to_string(Ubatches::k_max_sequences));
    }
}

int32_t Probe::decode() {
    // Two tokens, one of them with output, so that a residual add that loses rows to pruning shows.
    const llama_model * model    = llama_get_model(ctx_);
    const int32_t       n_tokens = int32_t(std::min<uint32_t>(2, llama_n_ubatch(ctx_)));
    const llama_token   token    = std::max(0, llama_vocab_bos(llama_model_get_vocab(model)));
    Batch               batch;
    for (llama_pos pos = 0; pos < n_tokens; ++pos) {
        batch.add(token, pos, 0, pos + 1 == n_tokens);
    }
    const int32_t status = llama_decode(ctx_, batch.rows());

    llama_memory_clear(llama_get_memory(ctx_), true);
    llama_synchronize(ctx_);  // or the first real batch would be timed together with this one
    llama_perf_context_reset(ctx_);
    return status;
}

void Probe::finish(int32_t status) {
    if (status != 0) {
        throw DecodeError(status);
    }
    char size_and_hash[64];
    std::snprintf(size_and_hash, sizeof(size_and_hash), "-%dx%d-%016llx", n_layer,
                  llama_model_n_embd(llama_get_model(ctx_)), static_cast<unsigned long long>(hash(vectors)));
    fingerprint = arch + size_and_hash;
    map         = learner_.finish();
}

void Probe::see(ggml_tensor * node) {
    restore(node);
    if (embedding == nullptr && reads_embedding(node)) {
        embedding = node->src[0];
    }
    if (embedding != nullptr) {
        learner_.add(node);
        std::copy_if(std::begin(node->src), std::end(node->src), std::back_inserter(vectors), is_block_vector);
        leave_out(node);
    }
}

void Probe::require_skippable() const {
    bool any = false;
    for (const Block & block : map.blocks) {
        if (block.kind != BlockKind::ffn) {
            continue;
        }
        any = any || block.skippable;
        // Not the last one: its rows are pruned to those with output, which is not why a model is refused.
        if (block.layer >= 0 && !block.skippable && block.layer != n_layer - 1) {
            throw Unsupported("architecture '" + arch + "', layer " + std::to_string(block.layer) +
                              ": the FFN block can't be skipped: " + block.why_not);
        }
    }
    if (!any) {
        throw Unsupported("architecture '" + arch + "' has no FFN block that can be skipped");
    }
}

}  // namespace ffnskip
