// Evaluates texts that are given, as if the model had generated them: every row comes out as it would alone, at the speed of
// a batch.
#pragma once

#include "ffnskip/export.h"
#include "ffnskip/session.h"

#include <llama.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace ffnskip FFNSKIP_API {

// Decodes tokens of sequence 0 after what it holds, n_batch at a time. `kinds`: [n_tokens]; null where they are generated
// tokens, counted from the first of them. `rows`: of which `logits`, [n_rows, n_vocab], gets a copy; in ascending order. The
// last token has an output whatever they are.
void forward(Session & session, const std::vector<llama_token> & tokens, const RowKind * kinds,
             const std::vector<int32_t> & rows, float * logits);

struct Scores {
    std::vector<double>  log_likelihood;   // [n_continuations] natural logarithm; 0 of an empty continuation
    std::vector<uint8_t> greedy;           // [n_continuations] 1 where every token is the model's first choice
    int64_t              n_evaluated = 0;  // tokens
};

// The likelihood of each continuation after `prefix`, which is decoded once: `n_prompt` tokens of it as a prompt, all where
// that is not given, and the others as generated ones. A continuation goes on with that count, or counts as generated from
// its first token on: token i may skip if i >= warm_up_index. Continuations share batches where the context has more than
// one sequence, and come one by one where it has not. Empties the memory first, but for what it has of the prefix
// (Session::keep); sequence 0 holds the prefix afterwards, with the last continuation after it where the context has one
// sequence and its memory can't go back. Throws
// std::invalid_argument, before anything is changed, where the prefix is empty, where it does not fit the context with the
// longest continuation, for an id that is no token, or where the prefix has fewer tokens than n_prompt.
Scores score(Session & session, const std::vector<llama_token> & prefix,
             const std::vector<std::vector<llama_token>> & continuations,
             std::optional<size_t>                         n_prompt = std::nullopt);

}  // namespace ffnskip FFNSKIP_API
