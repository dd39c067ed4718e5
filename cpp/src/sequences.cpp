#include "sequences.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

namespace ffnskip {
namespace {

// Each sequence of each row of a batch: visit(row, sequence, the row has others too).
template <typename Visit> void for_rows(const llama_batch & rows, Visit visit) {
    for (int32_t i = 0; i < rows.n_tokens; ++i) {
        const int32_t n_seq = rows.n_seq_id == nullptr ? 1 : rows.n_seq_id[i];
        for (int32_t s = 0; s < n_seq; ++s) {
            visit(size_t(i), rows.seq_id == nullptr ? 0 : rows.seq_id[i][s], n_seq > 1);
        }
    }
}

}  // namespace

const Sequences::Sequence * Sequences::known(llama_seq_id seq) const {
    return seq >= 0 && size_t(seq) < sequences_.size() ? &sequences_[size_t(seq)] : nullptr;
}

Sequences::Sequence & Sequences::grown(llama_seq_id seq) {
    if (size_t(seq) >= sequences_.size()) {
        sequences_.resize(size_t(seq) + 1);
    }
    return sequences_[size_t(seq)];
}

Sequences::Part * Sequences::part_of(llama_seq_id seq) {
    // Batches come sequence by sequence or with one row of each, so the last one is the likeliest.
    for (size_t i = parts_.size(); i-- > 0;) {
        if (parts_[i].seq == seq) {
            return &parts_[i];
        }
    }
    return nullptr;
}

Sequences::Part & Sequences::part_of(llama_memory_t memory, llama_seq_id seq) {
    if (Part * found = part_of(seq)) {
        return *found;
    }
    Part part;
    part.seq  = seq;
    part.next = llama_memory_seq_pos_max(memory, seq) + 1;
    parts_.push_back(part);
    return parts_.back();
}

// ---- before a decode ----

void Sequences::note(llama_memory_t memory, const llama_batch & rows) {
    parts_.clear();
    positions_.assign(size_t(rows.n_tokens), 0);
    for_rows(rows, [&](size_t row, llama_seq_id seq, bool shared) {
        if (seq < 0 || size_t(seq) >= llama_max_parallel_sequences()) {
            return;  // llama_decode refuses the batch
        }
        Part &          part = part_of(memory, seq);
        const llama_pos pos  = rows.pos == nullptr ? part.next + part.n_rows : rows.pos[row];
        positions_[row]      = pos;
        part.first           = part.n_rows == 0 ? pos : part.first;
        part.follows         = part.follows && (part.n_rows == 0 || pos == part.last + 1);
        part.last            = pos;
        part.output          = rows.logits == nullptr ? row + 1 == positions_.size() : rows.logits[row] != 0;
        part.outputs         = part.outputs && part.output;
        part.shared          = part.shared || shared;
        ++part.n_rows;
    });
}

bool Sequences::is_generated(const Part & part, Fed fed) const {
    if (fed != Fed::recognise || part.shared || !part.follows) {
        return fed == Fed::generated && !part.shared && part.follows;
    }
    const Sequence * before = known(part.seq);
    const bool       draft  = part.n_rows <= k_max_draft && part.outputs;
    if (before == nullptr || before->output == 0 || part.first != part.next || (part.n_rows > 1 && !draft)) {
        return false;
    }
    // Behind the row decoded last, or behind one of a draft of which the rest was refused.
    return part.next - 1 <= before->last && part.next - 1 >= before->last - before->n_verified;
}

const RowKind * Sequences::classify(llama_memory_t memory, const llama_batch & rows, Fed fed, int warm_up_index) {
    note(memory, rows);
    if (rows.token == nullptr) {
        return nullptr;
    }
    kinds_.assign(size_t(rows.n_tokens), RowKind::prompt);
    bool any = false;
    for (Part & part : parts_) {
        part.generated = is_generated(part, fed);
        if (part.generated) {
            const Sequence * before = known(part.seq);
            const int64_t    undone = before == nullptr ? 0 : std::max(0, before->last - (part.first - 1));
            part.n_before           = before == nullptr ? 0 : std::max<int64_t>(0, before->generated - undone);
            any                     = true;
        }
    }
    if (!any) {
        return nullptr;
    }
    for_rows(rows, [&](size_t row, llama_seq_id seq, bool) {
        const Part * part = part_of(seq);
        if (part != nullptr && part->generated) {
            const int64_t before = part->n_before + (positions_[row] - part->first);
            kinds_[row]          = before >= warm_up_index ? RowKind::skippable : RowKind::warm_up;
        }
    });
    return kinds_.data();
}

// ---- after it ----

// Position `pos` now holds `token`, and is the last.
void Sequences::Sequence::place(llama_pos pos, llama_token token) {
    const bool known = token != LLAMA_TOKEN_NULL;
    if (!known || pos < first_token || pos > end()) {
        tokens.clear();
        first_token = known ? pos : pos + 1;
    }
    tokens.resize(size_t(pos - first_token + (known ? 1 : 0)));
    if (known) {
        tokens.back() = token;
    }
}

// The token at `pos` left something out, under settings of key `of`.
void Sequences::Sequence::leave(llama_pos pos, Left left, uint64_t of) {
    if (left == Left::nothing) {
        return;
    }
    key           = first_skipped == k_none || key == of ? of : 0;
    first_skipped = std::min(first_skipped, pos);
    if (left == Left::gaps) {
        gap_key   = of;
        first_gap = std::min(first_gap, pos);
    }
}

void Sequences::commit(const llama_batch & rows, const std::vector<Left> * left, uint64_t key) {
    committed_.clear();
    for (const Part & part : parts_) {
        Sequence & sequence = grown(part.seq);
        sequence.generated  = part.generated ? part.n_before + part.n_rows : 0;
        sequence.n_verified = part.generated && part.outputs ? part.n_rows - 1 : 0;
        sequence.last       = part.last;
        sequence.output     = part.output;
        if (part.first <= sequence.first_skipped) {
            sequence.first_skipped = k_none;
        }
        if (part.first <= sequence.first_gap) {
            sequence.first_gap = k_none;
        }
        committed_.push_back(part.seq);
    }
    for_rows(rows, [&](size_t row, llama_seq_id seq, bool) {
        if (part_of(seq) == nullptr) {
            return;
        }
        Sequence & sequence = sequences_[size_t(seq)];
        sequence.place(positions_[row], rows.token == nullptr ? LLAMA_TOKEN_NULL : rows.token[row]);
        if (left != nullptr) {
            sequence.leave(positions_[row], (*left)[row], key);
        }
    });
    parts_.clear();
}

void Sequences::outputs_unread() {
    for (const llama_seq_id seq : committed_) {
        if (Sequence * sequence = known(seq)) {
            sequence->output = 0;
        }
    }
}

// ---- what skipping tokens left ----

llama_pos Sequences::first_to_repeat(llama_seq_id seq, llama_pos end, bool full, uint64_t key) const {
    const Sequence * sequence     = known(seq);
    const bool       builds_on_it = sequence == nullptr || (!full && sequence->key == key && key != 0);
    return builds_on_it ? end : std::min(sequence->first_skipped, end);
}

llama_pos Sequences::first_gap(llama_seq_id seq, llama_pos end, uint64_t key) const {
    const Sequence * sequence = known(seq);
    return sequence == nullptr || sequence->gap_key == key ? end : std::min(sequence->first_gap, end);
}

const llama_token * Sequences::tokens(llama_seq_id seq, llama_pos from, llama_pos to) const {
    const Sequence * sequence = known(seq);
    const bool       there    = sequence != nullptr && from >= sequence->first_token && to <= sequence->end();
    return there ? sequence->tokens.data() + (from - sequence->first_token) : nullptr;
}

void Sequences::repeated(llama_seq_id seq, llama_pos from, Left left, uint64_t key) {
    if (Sequence * sequence = known(seq)) {
        sequence->first_skipped = k_none;
        sequence->first_gap     = k_none;
        sequence->leave(from, left, key);
    }
}

// ---- what is done to sequences between decodes ----

void Sequences::copied(llama_seq_id from, llama_seq_id to) {
    if (from < 0 || to < 0 || from == to) {
        return;
    }
    grown(std::max(from, to));
    sequences_[size_t(to)] = sequences_[size_t(from)];
}

void Sequences::shifted(llama_seq_id seq, llama_pos p0, llama_pos p1, llama_pos delta) {
    p0 = std::max(0, p0);
    if (p1 >= 0 && p1 <= p0) {
        return;
    }
    const auto within = [&](llama_pos pos) { return pos >= p0 && (p1 < 0 || pos < p1); };
    for (size_t id = 0; id < sequences_.size(); ++id) {
        Sequence & sequence = sequences_[id];
        if (seq >= 0 && size_t(seq) != id) {
            continue;
        }
        if (within(sequence.last)) {
            sequence.last += delta;
        }
        for (llama_pos * first : { &sequence.first_skipped, &sequence.first_gap }) {
            if (*first != k_none && within(*first)) {
                *first += delta;
            } else if (*first != k_none && *first >= p0 + delta && *first < p0) {
                *first = p0 + delta;  // it was taken out; what follows it may have skipped too
            }
        }
        // A context that drops [p0 + delta, p0) and moves up what follows keeps the rest of its text, up to p1.
        const llama_pos end = sequence.end();
        if (p0 >= end) {
            continue;
        }
        if (delta < 0 && p0 + delta >= sequence.first_token) {
            const auto at = [&](llama_pos pos) { return sequence.tokens.begin() + (pos - sequence.first_token); };
            sequence.tokens.erase(at(p1 < 0 ? end : std::min(p1, end)), sequence.tokens.end());
            sequence.tokens.erase(at(p0 + delta), at(p0));
        } else {
            sequence.tokens.clear();
            sequence.first_token = sequence.last + 1;
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

void Sequences::count_from_here(llama_seq_id seq) {
    if (Sequence * sequence = known(seq)) {
        sequence->generated = 0;
    }
}

// ---- with a saved state ----

std::string Sequences::save(llama_seq_id seq) const {
    const Sequence * found    = known(seq);
    const Sequence   sequence = found == nullptr ? Sequence() : *found;
    Counts           counts   = sequence;
    counts.n_saved            = sequence.tokens.size();
    std::string bytes(reinterpret_cast<const char *>(&counts), sizeof(counts));
    bytes.append(reinterpret_cast<const char *>(sequence.tokens.data()), sequence.tokens.size() * sizeof(llama_token));
    return bytes;
}

bool Sequences::load(llama_seq_id seq, const std::string & account) {
    Counts counts;
    if (seq < 0 || account.size() < sizeof(counts)) {
        return false;
    }
    std::memcpy(&counts, account.data(), sizeof(counts));
    const size_t n_bytes = account.size() - sizeof(counts);
    if (n_bytes % sizeof(llama_token) != 0 || counts.n_saved != n_bytes / sizeof(llama_token)) {
        return false;
    }
    Sequence sequence{ counts, std::vector<llama_token>(counts.n_saved) };
    std::memcpy(sequence.tokens.data(), account.data() + sizeof(counts), n_bytes);
    grown(seq) = std::move(sequence);
    return true;
}

}  // namespace ffnskip
