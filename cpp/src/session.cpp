#include "ffnskip/session.h"

#include "memory.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace ffnskip {
namespace {

void require_success(int32_t status) {
    if (status != 0) {
        throw DecodeError(status);
    }
}

}  // namespace

Session::Session(llama_context * ctx, Controller * controller)
    : ctx_(ctx), controller_(controller), next_(llama_n_seq_max(ctx), -1) {}

llama_pos Session::n_used(llama_seq_id seq) const {
    return llama_memory_seq_pos_max(llama_get_memory(ctx_), seq) + 1;
}

bool Session::has_room(size_t n_tokens, llama_seq_id seq) const {
    return n_tokens <= size_t(std::max(0, n_ctx() - n_used(seq)));
}

void Session::prompt(const llama_token * tokens, size_t n_tokens, llama_seq_id seq, Fed fed) {
    const bool   observed   = fed == Fed::generated && controller_ != nullptr;
    const size_t n_observed = observed ? size_t(controller_->settings().n_observed()) : 0;
    for (size_t i = 0; i < n_tokens; ++i) {
        add(tokens[i], seq, i < n_observed || i + 1 == n_tokens);
        if (n_rows() == n_batch() || i + 1 == n_tokens) {
            decode(fed);
        }
    }
}

void Session::generated(llama_token token, llama_seq_id seq) {
    add(token, seq, true);
    decode(Fed::generated);
}

llama_token Session::step(llama_sampler * sampler, llama_token token, llama_seq_id seq) {
    generated(token, seq);
    return llama_sampler_sample(sampler, ctx_, -1);
}

void Session::step(const std::vector<Turn> & turns, llama_token * next) {
    for (const Turn & turn : turns) {
        add(turn.token, turn.seq, true);
    }
    decode(Fed::generated);
    for (size_t i = 0; i < turns.size(); ++i) {
        next[i] = llama_sampler_sample(turns[i].sampler, ctx_, int32_t(i));
    }
}

void Session::add(llama_token token, llama_seq_id seq, bool output) {
    if (seq < 0 || size_t(seq) >= next_.size()) {
        throw std::invalid_argument("sequence " + std::to_string(seq) + ": the context has " +
                                    std::to_string(next_.size()));
    }
    if (is_decoded_) {
        batch_.clear();
        std::fill(next_.begin(), next_.end(), -1);
        is_decoded_ = false;
    }
    llama_pos & next = next_[size_t(seq)];
    next             = next < 0 ? n_used(seq) : next;
    batch_.add(token, next++, seq, output);
}

void Session::decode(Fed fed) {
    is_decoded_ = true;
    decode(batch_.rows(), fed);
}

void Session::decode(const RowKind * kinds) {
    is_decoded_ = true;
    require_success(controller_ == nullptr ? llama_decode(ctx_, batch_.rows())
                                           : controller_->decode(ctx_, batch_.rows(), kinds));
}

void Session::decode(const llama_batch & rows, Fed fed) {
    require_success(controller_ == nullptr ? llama_decode(ctx_, rows) : controller_->decode(ctx_, rows, fed));
}

bool Session::go_back(llama_pos from, llama_seq_id seq) {
    return from >= n_used(seq) || ffnskip::go_back(ctx_, seq, from);
}

void Session::cut(llama_pos from, llama_seq_id seq) {
    if (!go_back(from, seq)) {
        throw std::runtime_error("the memory of this model can't go back to position " + std::to_string(from) +
                                 "; reset it and evaluate the text again");
    }
}

void Session::copy(llama_seq_id from, llama_seq_id to) {
    llama_memory_seq_rm(llama_get_memory(ctx_), to, -1, -1);
    llama_memory_seq_cp(llama_get_memory(ctx_), from, to, -1, -1);
    if (controller_ != nullptr) {
        controller_->copied(from, to);
    }
}

void Session::clear() {
    llama_memory_clear(llama_get_memory(ctx_), false);
    if (controller_ != nullptr) {
        controller_->replaced(-1);
    }
}

size_t Session::keep(const llama_token * tokens, size_t n_tokens, size_t n_prompt) {
    for (llama_seq_id seq = 1; seq < n_sequences(); ++seq) {
        cut(0, seq);
    }
    const llama_pos held = controller_ == nullptr ? 0 : controller_->n_held(0, tokens, n_tokens, n_prompt);
    const llama_pos n    = std::min({ held, n_used(), llama_pos(n_tokens) - 1 });
    if (n <= 0 || !go_back(n)) {
        clear();
        return 0;
    }
    if (n <= llama_pos(n_prompt)) {
        controller_->count_from_here(0);
    }
    return size_t(n);
}

}  // namespace ffnskip
