// Tells one model from another by weights that quantisation leaves alone: the float32 vectors of its blocks, most of them
// norms. Fine-tunes of a model differ in them, files of one model in several types do not.
#pragma once

#include <ggml.h>

#include <string>
#include <vector>

namespace ffnskip {

// Adds those of the vectors that the node reads.
void add_block_vectors(const ggml_tensor * node, std::vector<const ggml_tensor *> & vectors);

// `head` and a hash of the vectors, which are read, a megabyte or so: "llama-32x4096-0123456789abcdef".
std::string fingerprint(const std::string & head, std::vector<const ggml_tensor *> vectors);

}  // namespace ffnskip
