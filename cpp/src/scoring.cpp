#include "ffnskip/scoring.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>

namespace ffnskip {
namespace {

using Tokens = std::vector<llama_token>;

// A continuation that is being decoded. Its last token predicts nothing that is asked for.
struct Running {
    size_t       which;
    llama_seq_id seq;
    size_t       n_rows;
    size_t       n_decoded = 0;
};

class Scorer {
public:
    Scorer(Session & session, const Tokens & prefix, const std::vector<Tokens> & continuations, size_t n_prompt)
        : session_(session), prefix_(prefix), continuations_(continuations), n_prompt_(n_prompt),
          n_vocab_(session.n_vocab()) {
        out_.log_likelihood.assign(continuations.size(), 0.0);
        out_.greedy.assign(continuations.size(), 1);
    }

    Scores run() {
        require();
        read_prefix();
        for (size_t i = 0; i < continuations_.size(); ++i) {
            if (!continuations_[i].empty()) {
                add(i, 0, -1);
            }
        }
        const int32_t n_seq = session_.n_sequences();
        for (llama_seq_id seq = n_seq == 1 ? 0 : 1; seq < n_seq; ++seq) {
            free_.push_back(seq);
        }
        while (start() || !running_.empty()) {
            decode_some();
        }
        session_.go_back(llama_pos(prefix_.size()));  // where it can
        return out_;
    }

private:
    static size_t n_rows(const Tokens & continuation) { return continuation.empty() ? 0 : continuation.size() - 1; }

    void require_tokens(const char * name, const Tokens & tokens) const {
        for (const llama_token token : tokens) {
            if (token < 0 || token >= n_vocab_) {
                throw std::invalid_argument(std::string(name) + ": token " + std::to_string(token) +
                                            " is outside [0, " + std::to_string(n_vocab_) + ")");
            }
        }
    }

    void require() const {
        if (prefix_.empty()) {
            throw std::invalid_argument(
                "prefix: it has no tokens; one at least predicts the first token of a continuation");
        }
        if (n_prompt_ > prefix_.size()) {
            throw std::invalid_argument("n_prompt: " + std::to_string(n_prompt_) + " is outside [0, " +
                                        std::to_string(prefix_.size()) + "], the tokens of the prefix");
        }
        require_tokens("prefix", prefix_);
        for (const Tokens & continuation : continuations_) {
            require_tokens("continuations", continuation);
            const size_t needed = prefix_.size() + n_rows(continuation);
            if (needed > size_t(session_.n_ctx())) {
                throw std::invalid_argument("continuations: one of " + std::to_string(continuation.size()) +
                                            " tokens after a " + "prefix of " + std::to_string(prefix_.size()) +
                                            " needs room for " + std::to_string(needed) + ", the context has " +
                                            std::to_string(session_.n_ctx()));
            }
        }
    }

    // What the memory has of it stays.
    void read_prefix() {
        const size_t kept   = session_.keep(prefix_.data(), prefix_.size(), n_prompt_);
        const size_t prompt = std::max(kept, n_prompt_);
        session_.prompt(prefix_.data() + kept, prompt - kept);
        session_.prompt(prefix_.data() + prompt, prefix_.size() - prompt, 0, Fed::generated);
        out_.n_evaluated += int64_t(prefix_.size() - kept);
    }

    // The output of a row predicts token `index` of a continuation.
    void add(size_t which, size_t index, int32_t row) {
        const float *     logits = llama_get_logits_ith(session_.context(), row);
        const llama_token token  = continuations_[which][index];
        const float *     most   = std::max_element(logits, logits + n_vocab_);
        double            sum    = 0.0;
        for (int32_t i = 0; i < n_vocab_; ++i) {
            sum += std::exp(double(logits[i]) - double(*most));
        }
        out_.log_likelihood[which] += double(logits[token]) - double(*most) - std::log(sum);
        out_.greedy[which] &= uint8_t(most == logits + token);
    }

    // Starts the continuations that there is a sequence and room for. Sequences of a unified memory share its cells.
    bool start() {
        const size_t n_ctx  = llama_n_ctx(session_.context());
        const bool   shared = size_t(session_.n_ctx()) == n_ctx;
        size_t       used   = prefix_.size();
        for (const Running & running : running_) {
            used += running.n_rows;
        }
        for (; next_ < continuations_.size() && !free_.empty(); ++next_) {
            const size_t rows = n_rows(continuations_[next_]);
            if (shared && used + rows > n_ctx) {
                break;
            }
            if (rows > 0) {
                used += rows;
                running_.push_back({ next_, free_.back(), rows });
                free_.pop_back();
                begin(running_.back().seq);
            }
        }
        return !running_.empty();
    }

    // Sequence `seq` is the prefix.
    void begin(llama_seq_id seq) {
        const bool counts_on = n_prompt_ < prefix_.size();
        if (seq != 0) {
            session_.copy(0, seq);
        } else if (!is_there(counts_on)) {
            read_prefix();
        }
        if (session_.controller() != nullptr && !counts_on) {
            session_.controller()->count_from_here(seq);
        }
    }

    // Sequence 0 is the prefix. What its first generated tokens told of channels does not go back with it.
    bool is_there(bool counts_on) {
        const llama_pos end = llama_pos(prefix_.size());
        return counts_on ? session_.n_used() == end : session_.go_back(end);
    }

    void decode_some() {
        rows_.clear();
        for (Running & running : running_) {
            for (; running.n_decoded < running.n_rows && session_.n_rows() < session_.n_batch(); ++running.n_decoded) {
                session_.add(continuations_[running.which][running.n_decoded], running.seq, true);
                rows_.push_back({ running.which, running.n_decoded });
            }
        }
        session_.decode(Fed::generated);
        out_.n_evaluated += int64_t(rows_.size());
        for (size_t i = 0; i < rows_.size(); ++i) {
            add(rows_[i].first, rows_[i].second + 1, int32_t(i));
        }
        const auto is_done = [&](const Running & running) {
            if (running.n_decoded < running.n_rows) {
                return false;
            }
            if (running.seq != 0) {
                session_.cut(0, running.seq);
            }
            free_.push_back(running.seq);
            return true;
        };
        running_.erase(std::remove_if(running_.begin(), running_.end(), is_done), running_.end());
    }

    Session &                   session_;
    const Tokens &              prefix_;
    const std::vector<Tokens> & continuations_;
    const size_t                n_prompt_;
    const int32_t               n_vocab_;

    Scores                                 out_;
    size_t                                 next_ = 0;  // continuation to start
    std::vector<llama_seq_id>              free_;
    std::vector<Running>                   running_;
    std::vector<std::pair<size_t, size_t>> rows_;  // of the batch: continuation, and index in it
};

}  // namespace

void forward(Session & session, const Tokens & tokens, const RowKind * kinds, const std::vector<int32_t> & rows,
             float * logits) {
    const size_t n_logits = size_t(session.n_vocab());
    if (kinds == nullptr && session.controller() != nullptr) {
        session.controller()->count_from_here(0);
    }
    const int n_observed  = session.controller() == nullptr ? 0 : session.controller()->settings().n_observed();
    int       n_generated = 0;  // since the last row of a prompt
    auto      row         = rows.begin();
    for (size_t begin = 0; begin < tokens.size();) {
        const size_t end   = std::min(tokens.size(), begin + size_t(session.n_batch()));
        auto         asked = row;
        for (size_t i = begin; i < end; ++i) {
            const bool wanted = asked != rows.end() && size_t(*asked) == i;
            asked += wanted;
            n_generated = kinds != nullptr && kinds[i] == RowKind::prompt ? 0 : n_generated + 1;
            session.add(tokens[i], 0,
                        wanted || i + 1 == tokens.size() || (n_generated > 0 && n_generated <= n_observed));
        }
        if (kinds == nullptr) {
            session.decode(Fed::generated);
        } else {
            session.decode(kinds + begin);
        }
        for (; row != asked; ++row, logits += n_logits) {
            const float * found = llama_get_logits_ith(session.context(), *row - int32_t(begin));
            std::copy(found, found + n_logits, logits);
        }
        begin = end;
    }
}

Scores score(Session & session, const Tokens & prefix, const std::vector<Tokens> & continuations,
             std::optional<size_t> n_prompt) {
    return Scorer(session, prefix, continuations, n_prompt.value_or(prefix.size())).run();
}

}  // namespace ffnskip
