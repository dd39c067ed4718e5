#include "sequences.h"

namespace ffnskip {

Sequences::Sequence * Sequences::known(llama_seq_id seq) {
    return seq >= 0 && size_t(seq) < sequences_.size() ? &sequences_[size_t(seq)] : nullptr;
}

Sequences::Part & Sequences::part_of(llama_memory_t memory, llama_seq_id seq) {
    // Batches come sequence by sequence or with one row of each, so the last one is the likeliest.
    for (size_t i = parts_.size(); i-- > 0;) {
        if (parts_[i].seq == seq) {
            return parts_[i];
        }
    }
    Part part;
    part.seq  = seq;
    part.next = llama_memory_seq_pos_max(memory, seq) + 1;
    parts_.push_back(part);
    return parts_.back();
}

void Sequences::take(llama_memory_t memory, const llama_batch & rows, int32_t i) {
    const int32_t n_seq = rows.n_seq_id == nullptr ? 1 : rows.n_seq_id[i];
    for (int32_t s = 0; s < n_seq; ++s) {
        const llama_seq_id seq = rows.seq_id == nullptr ? 0 : rows.seq_id[i][s];
        if (seq < 0 || size_t(seq) >= llama_max_parallel_sequences()) {
            continue;  // llama_decode refuses the batch
        }
        Part & part = part_of(memory, seq);
        part.last   = rows.pos == nullptr ? part.next + part.n_rows : rows.pos[i];
        part.row    = i;
        part.output = rows.logits == nullptr ? i == rows.n_tokens - 1 : rows.logits[i] != 0;
        part.shared = part.shared || n_seq > 1;
        ++part.n_rows;
    }
}

const RowKind * Sequences::classify(llama_memory_t memory, const llama_batch & rows, int warm_up_index) {
    parts_.clear();
    for (int32_t i = 0; i < rows.n_tokens; ++i) {
        take(memory, rows, i);
    }
    kinds_.assign(size_t(rows.n_tokens), RowKind::prompt);
    bool any = false;
    for (Part & part : parts_) {
        const Sequence * before = known(part.seq);
        part.generated = before != nullptr && before->output && before->last == part.next - 1 && part.last == part.next &&
                         part.n_rows == 1 && !part.shared && rows.token != nullptr;
        if (part.generated) {
            kinds_[size_t(part.row)] = before->generated >= warm_up_index ? RowKind::skippable : RowKind::warm_up;
            any                      = true;
        }
    }
    return any ? kinds_.data() : nullptr;
}

void Sequences::commit() {
    for (const Part & part : parts_) {
        if (size_t(part.seq) >= sequences_.size()) {
            sequences_.resize(size_t(part.seq) + 1);
        }
        Sequence & sequence = sequences_[size_t(part.seq)];
        sequence.last       = part.last;
        sequence.output     = part.output;
        sequence.generated  = part.generated ? sequence.generated + 1 : 0;
    }
    parts_.clear();
}

void Sequences::copied(llama_seq_id from, llama_seq_id to) {
    if (from < 0 || to < 0 || from == to) {
        return;
    }
    if (size_t(to) >= sequences_.size()) {
        sequences_.resize(size_t(to) + 1);
    }
    const Sequence * source    = known(from);
    sequences_[size_t(to)] = source == nullptr ? Sequence() : *source;
}

void Sequences::shifted(llama_seq_id seq, llama_pos p0, llama_pos p1, llama_pos delta) {
    for (size_t id = 0; id < sequences_.size(); ++id) {
        Sequence & sequence = sequences_[id];
        if ((seq < 0 || size_t(seq) == id) && sequence.last >= p0 && (p1 < 0 || sequence.last < p1)) {
            sequence.last += delta;
        }
    }
}

void Sequences::replaced(llama_seq_id seq) {
    if (seq < 0) {
        sequences_.clear();
    } else if (Sequence * sequence = known(seq)) {
        *sequence = Sequence();
    }
}

}  // namespace ffnskip
