// What is in a llama_batch_ext, noted as it is filled, in the form of a llama_batch.
#pragma once

#include <llama.h>

#include <cstdint>
#include <vector>

namespace ffnskip {

class BatchRows {
public:
    void clear() { n_ = 0; }

    void add(int32_t row, llama_seq_id seq, llama_token token) {
        n_ = row + 1;
        if (rows_.size() < size_t(n_)) {
            rows_.resize(size_t(n_));
        }
        Row & added = rows_[size_t(row)];
        added.seqs.assign(1, seq);
        added.token    = token;
        added.pos      = 0;
        added.output   = 0;
        added.embedded = token == LLAMA_TOKEN_NULL;
    }

    void share(int32_t row, llama_seq_id seq) {
        with(row, [=](Row & r) { r.seqs.push_back(seq); });
    }
    void embed(int32_t row) {
        with(row, [](Row & r) { r.embedded = true; });
    }
    void place(int32_t row, llama_pos pos) {
        with(row, [=](Row & r) { r.pos = pos; });
    }
    void output(int32_t row, bool output) {
        with(row, [=](Row & r) { r.output = int8_t(output); });
    }

    // Valid until the next change. Without token ids if any row is an embedding: such a batch is a prompt.
    llama_batch view() {
        bool tokens_only = true;
        for (auto * column : { &tokens_, &positions_, &counts_ }) {
            column->resize(size_t(n_));
        }
        sequences_.resize(size_t(n_));
        outputs_.resize(size_t(n_));
        for (size_t i = 0; i < size_t(n_); ++i) {
            Row & row     = rows_[i];
            tokens_[i]    = row.token;
            positions_[i] = row.pos;
            counts_[i]    = int32_t(row.seqs.size());
            sequences_[i] = row.seqs.data();
            outputs_[i]   = row.output;
            tokens_only   = tokens_only && !row.embedded;
        }
        return { n_,
                 tokens_only ? tokens_.data() : nullptr,
                 nullptr,
                 positions_.data(),
                 counts_.data(),
                 sequences_.data(),
                 outputs_.data() };
    }

private:
    struct Row {
        llama_token               token    = LLAMA_TOKEN_NULL;
        llama_pos                 pos      = 0;
        int8_t                    output   = 0;
        bool                      embedded = false;
        std::vector<llama_seq_id> seqs;
    };

    template <typename Change> void with(int32_t row, Change change) {
        if (row >= 0 && row < n_) {
            change(rows_[size_t(row)]);
        }
    }

    int32_t          n_ = 0;
    std::vector<Row> rows_;  // never shrinks, so that a batch used again allocates nothing

    std::vector<int32_t>        tokens_, positions_, counts_;
    std::vector<llama_seq_id *> sequences_;
    std::vector<int8_t>         outputs_;
};

}  // namespace ffnskip
