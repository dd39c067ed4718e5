// Rows of several sequences in one batch, and for each what a server tells of the token that is chosen after it.
//
//     std::vector<Row> rows = { { tokens[0], 0, samplers[0] }, { tokens[1], 1, samplers[1] } };
//     for (const Choice & choice : choose(session, rows, Fed::generated)) { ... }
#pragma once

#include "ffnskip/export.h"
#include "ffnskip/session.h"
#include "ffnskip/stats.h"

#include <llama.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace ffnskip FFNSKIP_API {

// A row: a token after what its sequence holds, and what is to be chosen from its output.
struct Row {
    llama_token        token   = 0;
    llama_seq_id       seq     = 0;
    llama_sampler *    sampler = nullptr;  // null: nothing, and it has no output
    std::optional<int> n_likeliest;  // tokens to be told besides, with how likely they are; not given: not even that
};

// What was chosen from a row's output.
struct Choice {
    using Likelihood = std::pair<llama_token, double>;  // natural logarithm of the probability, before any sampler

    llama_token             token = LLAMA_TOKEN_NULL;
    std::string             error;                 // of its sampler, which has then chosen nothing
    double                  log_likelihood = 0.0;  // of the token; 0 where it was not asked for
    std::vector<Likelihood> likeliest;             // the likeliest first
    RowStats                left_out;              // by the row
};

// Decodes the rows, n_batch at most; a choice for each that has a sampler, in order. A sampler that fails has no part in
// what the others choose.
std::vector<Choice> choose(Session & session, const std::vector<Row> & rows, Fed fed);

}  // namespace ffnskip FFNSKIP_API
