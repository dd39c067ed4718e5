// Tells one model from another by weights that quantisation leaves alone: the float32 vectors of its blocks, most of them
// norms. Fine-tunes of a model differ in them, files of one model in several types do not.
#pragma once

#include <ggml.h>

#include <cstdint>
#include <string>
#include <vector>

namespace ffnskip {

class Fingerprint {
public:
    void begin(const std::string & arch, int n_layer, int n_embd);
    // A node of the probe: its weights are taken note of.
    void add(const ggml_tensor * node);
    // Reads them, a megabyte or so. Nothing of the model is needed afterwards.
    void finish();
    // "llama-32x4096-0123456789abcdef"; empty before finish().
    const std::string & text() const { return text_; }

private:
    std::string                      head_;
    std::string                      text_;
    std::vector<const ggml_tensor *> vectors_;  // from begin() to finish()
};

}  // namespace ffnskip
