#include "sequences.h"

#include "ffnskip/errors.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

namespace ffnskip {
namespace {

// Each sequence of a row of a batch: visit(row, sequence).
template <typename Visit> void for_sequences(const llama_batch & rows, int32_t row, Visit visit) {
    const int32_t n_seq = rows.n_seq_id == nullptr ? 1 : rows.n_seq_id[row];
    for (int32_t s = 0; s < n_seq; ++s) {
        visit(size_t(row), rows.seq_id == nullptr ? 0 : rows.seq_id[row][s]);
    }
}

// Each sequence of each row of a batch: visit(row, sequence, the row has others too).
template <typename Visit> void for_rows(const llama_batch & rows, Visit visit) {
    for (int32_t i = 0; i < rows.n_tokens; ++i) {
        const bool shared = rows.n_seq_id != nullptr && rows.n_seq_id[i] > 1;
        for_sequences(rows, i, [&](size_t row, llama_seq_id seq) { visit(row, seq, shared); });
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
        part.repeats         = part.repeats && rows.token != nullptr && repeats(seq, pos, rows.token[row]);
        ++part.n_rows;
    });
    for (Part & part : parts_) {
        const Sequence * before = known(part.seq);
        if (before != nullptr && part.first > 0) {
            const int64_t undone = std::max(0, before->last - (part.first - 1));
            part.n_before        = std::max<int64_t>(0, before->generated - undone);
        }
    }
}

// Whether the token is what was decoded there, or stands behind all that was.
bool Sequences::repeats(llama_seq_id seq, llama_pos pos, llama_token token) const {
    const Sequence *    sequence = known(seq);
    const llama_token * there    = tokens(seq, pos, pos + 1);
    return there != nullptr ? *there == token : sequence != nullptr && pos == sequence->end();
}

// In a context that drafts: a token alone, or the verified ones.
bool Sequences::is_drafted(const Part & part) const {
    const Sequence * before = known(part.seq);
    if (before == nullptr || part.first != part.next || part.first == 0) {
        return false;
    }
    return part.n_rows == 1 || (part.repeats && part.first > before->last - before->generated);
}

bool Sequences::is_generated(const Part & part, Fed fed) const {
    if (part.shared || !part.follows || fed == Fed::prompt) {
        return false;
    }
    if (fed != Fed::recognise) {
        return fed == Fed::generated || is_drafted(part);
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
        any            = any || part.generated;
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

Sequences::Rows Sequences::known_of(const llama_batch & rows, const RowKind * kinds, const Settings & settings,
                                    uint64_t key) {
    Rows known;
    known.kinds = rows.token == nullptr ? nullptr : kinds;
    if (settings.check_interval > 1 && known.kinds != nullptr) {
        find_deciders(rows, kinds, settings.check_interval, key);
        known.deciders = deciders_.data();
    }
    n_left_out_.clear();
    if (settings.policy != Policy::skip_decode) {
        return known;
    }
    find_budgets(rows, known.kinds, settings);
    const bool any = std::any_of(n_left_out_.begin(), n_left_out_.end(), [](int32_t n) { return n > 0; });
    if (any && rows.token == nullptr) {
        throw Unsupported("policy 'skip_decode': embeddings can't follow tokens that left layers out");
    }
    if (any && known.kinds == nullptr) {
        kinds_.assign(size_t(rows.n_tokens), RowKind::prompt);
        known.kinds = kinds_.data();
    }
    known.n_left_out = known.kinds == nullptr ? nullptr : n_left_out_.data();
    return known;
}

void Sequences::find_deciders(const llama_batch & rows, const RowKind * kinds, int interval, uint64_t key) {
    for (Part & part : parts_) {
        const Sequence * before = known(part.seq);
        const Decision * last   = before == nullptr ? nullptr : before->decisions.before(part.n_before, key);
        part.token              = part.n_before;
        part.next_check         = last == nullptr ? 0 : last->token + interval;
        part.decider            = { -1, last == nullptr ? -1 : last->trip_layer };
    }
    deciders_.assign(size_t(rows.n_tokens), Decider());
    for_rows(rows, [&](size_t row, llama_seq_id seq, bool shared) {
        Part * part = part_of(seq);
        if (part == nullptr) {
            return;
        }
        if (kinds[row] == RowKind::prompt) {
            part->token = part->next_check = 0;
            return;
        }
        const int64_t token = part->token++;
        if (kinds[row] != RowKind::skippable) {
            return;
        }
        if (shared || token >= part->next_check) {
            part->next_check = token + interval;
            part->decider    = { int32_t(row), -1 };
        }
        deciders_[row] = part->decider;
    });
}

// A generated token leaves out what its position has it leave out, any row at least what its sequence has left out so far.
void Sequences::find_budgets(const llama_batch & rows, const RowKind * kinds, const Settings & settings) {
    for (Part & part : parts_) {
        Sequence & before = grown(part.seq);
        if (part.next - 1 > before.last) {  // the memory holds more than is known
            before.budget = LayerBudget();
        }
        part.n_left_out = part.next == 0 ? 0 : before.budget.before(part.first, settings.max_left_out);
    }
    most_left_out_ = settings.max_left_out;
    n_left_out_.assign(size_t(rows.n_tokens), 0);
    const auto take = [&](size_t row, llama_seq_id seq) {
        if (const Part * part = part_of(seq)) {
            n_left_out_[row] = std::max(n_left_out_[row], part->n_left_out);
        }
    };
    const auto give = [&](size_t row, llama_seq_id seq) {
        if (Part * part = part_of(seq)) {
            part->n_left_out = n_left_out_[row];
        }
    };
    for (int32_t i = 0; i < rows.n_tokens; ++i) {
        const bool generated   = kinds != nullptr && kinds[i] == RowKind::skippable;
        n_left_out_[size_t(i)] = generated ? settings.n_left_out(positions_[size_t(i)]) : 0;
        for_sequences(rows, i, take);
        for_sequences(rows, i, give);
    }
}

// ---- after it ----

// Position `pos` now holds `token`, or what is no token, and is the last.
void Sequences::Sequence::place(llama_pos pos, llama_token token) {
    const bool known = token != LLAMA_TOKEN_NULL;
    if (!known || pos < first_token || pos > end()) {
        tokens.clear();
        first_token = known ? pos : pos + 1;
    }
    if (known) {
        tokens.resize(size_t(pos - first_token) + 1);
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

// Rows are about to be told that stand behind those known, or in their place.
void Sequences::Sequence::begin_rows(const Part & part) {
    whole.is       = part.first == 0 || (whole.is && part.follows && part.first <= last + 1);
    whole.n_prompt = std::min(whole.n_prompt, part.first);
}

// One of them, before it is counted.
void Sequences::Sequence::add_row(llama_pos pos, bool prompt, const Part & part, uint64_t of) {
    if (prompt) {
        whole.is = whole.is && whole.n_prompt == pos;
        ++whole.n_prompt;
    } else {
        whole.key = whole.n_prompt == pos ? of : whole.key;
        whole.is  = whole.is && whole.key == of && part.generated && generated == pos - whole.n_prompt;
    }
}

void Sequences::commit(const llama_batch & rows, const Decoded & decoded, uint64_t key) {
    committed_.clear();
    for (const Part & part : parts_) {
        Sequence & sequence = grown(part.seq);
        sequence.begin_rows(part);
        sequence.generated = part.n_before;
        sequence.decisions.cut(part.n_before);
        sequence.budget.cut(part.next == 0 ? 0 : part.first);
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
        const Part * part = part_of(seq);
        if (part == nullptr) {
            return;
        }
        const bool prompt   = decoded.kinds == nullptr || decoded.kinds[row] == RowKind::prompt;
        Sequence & sequence = sequences_[size_t(seq)];
        sequence.place(positions_[row], rows.token == nullptr ? LLAMA_TOKEN_NULL : rows.token[row]);
        sequence.add_row(positions_[row], prompt, *part, key);
        if (prompt) {
            sequence.begin_count();
        } else {
            if (decoded.trips != nullptr && deciders_[row].row == int32_t(row)) {
                sequence.decisions.add({ int32_t(sequence.generated), (*decoded.trips)[row] }, key);
            }
            ++sequence.generated;
        }
        if (!n_left_out_.empty()) {
            sequence.budget.add(positions_[row], n_left_out_[row], most_left_out_);
        }
        if (decoded.left != nullptr) {
            sequence.leave(positions_[row], (*decoded.left)[row], key);
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

llama_pos Sequences::first_of_others(llama_seq_id seq, llama_pos end, uint64_t key) const {
    const Sequence * sequence = known(seq);
    if (sequence != nullptr && sequence->key == key && sequence->first_skipped == 0) {
        return end;
    }
    return tokens(seq, 0, end) != nullptr ? 0 : first_to_repeat(seq, end, false, key);
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

llama_pos Sequences::n_held(llama_seq_id seq, const llama_token * tokens, llama_pos n_tokens, llama_pos n_prompt,
                            bool every_row, uint64_t key) const {
    const Sequence * sequence = known(seq);
    if (sequence == nullptr || !sequence->whole.is || sequence->first_token != 0) {
        return 0;
    }
    if (every_row && (sequence->key != key || sequence->first_skipped != 0)) {
        return 0;
    }
    const std::vector<llama_token> & held = sequence->tokens;
    const size_t                     n    = std::min(held.size(), size_t(n_tokens));

    const llama_pos same   = llama_pos(std::mismatch(tokens, tokens + n, held.begin()).first - tokens);
    const Whole &   whole  = sequence->whole;
    const llama_pos prompt = std::min({ same, whole.n_prompt, n_prompt, every_row ? k_none : sequence->first_skipped });
    return prompt == n_prompt && whole.n_prompt == n_prompt && whole.key == key ? same : prompt;
}

void Sequences::repeated(llama_seq_id seq, llama_pos from, Left left, uint64_t key) {
    if (Sequence * sequence = known(seq)) {
        sequence->whole.is      = false;
        sequence->first_skipped = k_none;
        sequence->first_gap     = k_none;
        sequence->budget.cut(from);
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
        sequence.whole.is = false;
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
        sequence.budget.move([&](llama_pos & pos) {
            if (within(pos)) {
                pos += delta;
            } else if (pos >= p0 + delta && pos < p0) {
                pos = p0 + delta;
            }
        });
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
        sequence->begin_count();
    }
}

// ---- with a saved state ----

std::string Sequences::save(llama_seq_id seq) const {
    const Sequence * found    = known(seq);
    const Sequence   sequence = found == nullptr ? Sequence() : *found;
    Counts           counts   = sequence;
    counts.n_saved            = sequence.tokens.size();
    counts.decisions_key      = sequence.decisions.key();
    counts.n_decisions        = sequence.decisions.taken().size();
    counts.n_steps            = sequence.budget.steps().size();
    std::string bytes;
    const auto  add = [&](const void * data, size_t n) { bytes.append(static_cast<const char *>(data), n); };
    add(&counts, sizeof(counts));
    add(sequence.tokens.data(), counts.n_saved * sizeof(llama_token));
    add(sequence.decisions.taken().data(), counts.n_decisions * sizeof(Decision));
    add(sequence.budget.steps().data(), counts.n_steps * sizeof(LayerBudget::Step));
    return bytes;
}

bool Sequences::load(llama_seq_id seq, const std::string & account) {
    Counts counts;
    if (seq < 0 || account.size() < sizeof(counts)) {
        return false;
    }
    std::memcpy(&counts, account.data(), sizeof(counts));
    const char * from = account.data() + sizeof(counts);
    size_t       left = account.size() - sizeof(counts);

    const auto take = [&](auto & to, uint64_t n) {
        const size_t size = sizeof(to[0]);
        if (n > left / size) {
            return false;
        }
        to.resize(n);
        std::copy_n(from, n * size, reinterpret_cast<char *>(to.data()));
        from += n * size;
        left -= n * size;
        return true;
    };
    std::vector<llama_token>       tokens;
    std::vector<Decision>          decisions;
    std::vector<LayerBudget::Step> steps;
    if (!take(tokens, counts.n_saved) || !take(decisions, counts.n_decisions) || !take(steps, counts.n_steps) ||
        left != 0) {
        return false;
    }
    grown(seq) = { counts, Whole(), std::move(tokens), Decisions(counts.decisions_key, std::move(decisions)),
                   LayerBudget(std::move(steps)) };
    return true;
}

}  // namespace ffnskip
