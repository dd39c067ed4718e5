#include "sequences.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace ffnskip {

Sequences::Sequence * Sequences::known(llama_seq_id seq) {
    return seq >= 0 && size_t(seq) < sequences_.size() ? &sequences_[size_t(seq)] : nullptr;
}

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

void Sequences::take(llama_memory_t memory, const llama_batch & rows) {
    parts_.clear();
    for (int32_t i = 0; i < rows.n_tokens; ++i) {
        take(memory, rows, i);
    }
}

void Sequences::take(llama_memory_t memory, const llama_batch & rows, int32_t i) {
    const int32_t n_seq = rows.n_seq_id == nullptr ? 1 : rows.n_seq_id[i];
    for (int32_t s = 0; s < n_seq; ++s) {
        const llama_seq_id seq = rows.seq_id == nullptr ? 0 : rows.seq_id[i][s];
        if (seq < 0 || size_t(seq) >= llama_max_parallel_sequences()) {
            continue;  // llama_decode refuses the batch
        }
        Part &          part = part_of(memory, seq);
        const llama_pos pos  = rows.pos == nullptr ? part.next + part.n_rows : rows.pos[i];
        part.first           = part.n_rows == 0 ? pos : part.first;
        part.follows         = part.follows && (part.n_rows == 0 || pos == part.last + 1);
        part.last            = pos;
        part.output          = rows.logits == nullptr ? i == rows.n_tokens - 1 : rows.logits[i] != 0;
        part.outputs         = part.outputs && part.output;
        part.shared          = part.shared || n_seq > 1;
        ++part.n_rows;
    }
}

bool Sequences::is_generated(const Part & part, Fed fed) const {
    if (fed != Fed::recognise || part.shared || !part.follows) {
        return fed == Fed::generated && !part.shared && part.follows;
    }
    const Sequence * before = known(part.seq);
    const bool       draft  = part.n_rows <= k_max_draft && part.outputs;
    if (before == nullptr || !before->output || part.first != part.next || (part.n_rows > 1 && !draft)) {
        return false;
    }
    // Behind the row decoded last, or behind one of a draft of which the rest was refused.
    return part.next - 1 <= before->last && part.next - 1 >= before->last - before->n_verified;
}

const RowKind * Sequences::classify(llama_memory_t memory, const llama_batch & rows, Fed fed, int warm_up_index) {
    take(memory, rows);
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
    for (int32_t i = 0; i < rows.n_tokens; ++i) {
        Part * part = part_of(rows.seq_id == nullptr ? 0 : rows.seq_id[i][0]);
        if (part != nullptr && part->generated) {
            const llama_pos pos = rows.pos == nullptr ? part->first + i : rows.pos[i];  // without positions: one sequence
            kinds_[size_t(i)]   = part->n_before + (pos - part->first) >= warm_up_index ? RowKind::skippable : RowKind::warm_up;
        }
    }
    return kinds_.data();
}

void Sequences::note(llama_memory_t memory, const llama_batch & rows) {
    take(memory, rows);
}

// ---- after it ----

namespace {

// The text of a sequence, of which position `pos` now holds `token`.
void place(std::vector<llama_token> & tokens, llama_pos & first, llama_pos pos, llama_token token) {
    const bool known = token != LLAMA_TOKEN_NULL;
    if (!known || pos < first || pos > first + llama_pos(tokens.size())) {
        tokens.clear();
        first = known ? pos : pos + 1;
    }
    tokens.resize(size_t(pos - first + (known ? 1 : 0)));
    if (known) {
        tokens.back() = token;
    }
}

}  // namespace

void Sequences::commit(const llama_batch & rows, const std::vector<uint8_t> * skipped, uint64_t key) {
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
        committed_.push_back(part.seq);
    }
    for (int32_t i = 0; i < rows.n_tokens; ++i) {
        const int32_t n_seq = rows.n_seq_id == nullptr ? 1 : rows.n_seq_id[i];
        for (int32_t s = 0; s < n_seq; ++s) {
            Part * part = part_of(rows.seq_id == nullptr ? 0 : rows.seq_id[i][s]);
            if (part == nullptr) {
                continue;
            }
            Sequence &      sequence = sequences_[size_t(part->seq)];
            const llama_pos pos      = rows.pos == nullptr ? part->first + part->n_placed++ : rows.pos[i];
            place(sequence.tokens, sequence.first_token, pos, rows.token == nullptr ? LLAMA_TOKEN_NULL : rows.token[i]);
            if (skipped != nullptr && (*skipped)[size_t(i)] != 0) {
                const bool none        = sequence.first_skipped == k_none;
                sequence.key           = none || sequence.key == key ? key : 0;
                sequence.first_skipped = std::min(sequence.first_skipped, pos);
            }
        }
    }
    parts_.clear();
}

void Sequences::outputs_unread() {
    for (const llama_seq_id seq : committed_) {
        if (Sequence * sequence = known(seq)) {
            sequence->output = false;
        }
    }
}

void Sequences::forget() {
    sequences_.clear();
}

// ---- what skipping tokens left ----

llama_pos Sequences::first_to_repeat(llama_seq_id seq, llama_pos end, bool full, uint64_t key) const {
    const Sequence * sequence = known(seq);
    const bool       builds_on_it = sequence == nullptr || (!full && sequence->key == key && key != 0);
    return builds_on_it ? end : std::min(sequence->first_skipped, end);
}

const llama_token * Sequences::tokens(llama_seq_id seq, llama_pos from, llama_pos to) const {
    const Sequence * sequence = known(seq);
    if (sequence == nullptr || from < sequence->first_token ||
        to > sequence->first_token + llama_pos(sequence->tokens.size())) {
        return nullptr;
    }
    return sequence->tokens.data() + (from - sequence->first_token);
}

void Sequences::repeated(llama_seq_id seq) {
    if (Sequence * sequence = known(seq)) {
        sequence->first_skipped = k_none;
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
        if (sequence.first_skipped != k_none && within(sequence.first_skipped)) {
            sequence.first_skipped += delta;
        } else if (sequence.first_skipped != k_none && sequence.first_skipped >= p0 + delta && sequence.first_skipped < p0) {
            sequence.first_skipped = p0 + delta;  // it was taken out; what follows it may have skipped too
        }
        // A context that drops [p0 + delta, p0) and moves up what follows keeps the rest of its text, up to p1.
        const llama_pos end = sequence.first_token + llama_pos(sequence.tokens.size());
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
        forget();
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

namespace {

struct Saved {
    llama_pos last, first_skipped, first_token;
    int32_t   output;
    int64_t   generated, n_verified;
    uint64_t  key, n_tokens;
};

}  // namespace

std::string Sequences::save(llama_seq_id seq) const {
    const Sequence * found = known(seq);
    const Sequence   sequence = found == nullptr ? Sequence() : *found;
    Saved            saved{};
    saved.last          = sequence.last;
    saved.first_skipped = sequence.first_skipped;
    saved.first_token   = sequence.first_token;
    saved.output        = sequence.output;
    saved.generated     = sequence.generated;
    saved.n_verified    = sequence.n_verified;
    saved.key           = sequence.key;
    saved.n_tokens      = sequence.tokens.size();
    std::string bytes(reinterpret_cast<const char *>(&saved), sizeof(saved));
    bytes.append(reinterpret_cast<const char *>(sequence.tokens.data()), sequence.tokens.size() * sizeof(llama_token));
    return bytes;
}

bool Sequences::load(llama_seq_id seq, const std::string & account) {
    Saved saved{};
    if (seq < 0 || account.size() < sizeof(saved)) {
        return false;
    }
    std::memcpy(&saved, account.data(), sizeof(saved));
    if (saved.n_tokens > account.size() || account.size() != sizeof(saved) + saved.n_tokens * sizeof(llama_token)) {
        return false;
    }
    Sequence & sequence    = grown(seq);
    sequence.last          = saved.last;
    sequence.first_skipped = saved.first_skipped;
    sequence.first_token   = saved.first_token;
    sequence.output        = saved.output != 0;
    sequence.generated     = saved.generated;
    sequence.n_verified    = saved.n_verified;
    sequence.key           = saved.key;
    sequence.tokens.resize(saved.n_tokens);
    std::memcpy(sequence.tokens.data(), account.data() + sizeof(saved), saved.n_tokens * sizeof(llama_token));
    return true;
}

}  // namespace ffnskip
