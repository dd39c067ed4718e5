// Learns a context's model from a decode in which nothing is computed.
#pragma once

#include "graph_map.h"

#include <llama.h>

#include <string>
#include <vector>

namespace ffnskip {

class Probe {
public:
    // Throws where the context can't be probed, as Controller::probe() does.
    explicit Probe(llama_context * ctx);

    // Decodes two tokens, and clears the memory; llama_decode's status. see() must be told of every node.
    int32_t decode();
    void    see(ggml_tensor * node);
    // Throws DecodeError where the status is none of success.
    void finish(int32_t status);

    const std::string arch;
    const int         n_layer;
    // After finish().
    const ggml_tensor * embedding = nullptr;  // weight read by the first node of every evaluation
    GraphMap            map;                  // empty where no evaluation of a decoder was seen
    // "llama-32x4096-0123456789abcdef": tells this model from others by weights that quantisation leaves alone, the
    // float32 vectors of its blocks, most of them norms. Fine-tunes of a model differ in them, files of one model in
    // several types do not.
    std::string fingerprint;
    // What that is made from.
    std::vector<const ggml_tensor *> vectors;

    // Throws Unsupported, with what was found, where there is a block that can't be skipped, or none.
    void require_skippable() const;

private:
    llama_context * ctx_;
    GraphLearner    learner_;
};

}  // namespace ffnskip
