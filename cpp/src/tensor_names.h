// What the names of tensors say: llama.cpp's of weights, and the scheduler's of copies.
#pragma once

#include <charconv>
#include <cstdint>
#include <string_view>

namespace ffnskip {

// A tensor the scheduler copied to another device is named "<device>#<name of the original>#<number>".
inline std::string_view original_name(std::string_view name) {
    const size_t first = name.find('#');
    const size_t last  = name.rfind('#');
    return first == last ? name : name.substr(first + 1, last - first - 1);
}

inline bool is_copy(std::string_view name) {
    return original_name(name).size() != name.size();
}

enum class Part : uint8_t {
    other,
    ffn,       // of an FFN block
    near_ffn,  // none, but may be read by one: norms around it, biases that steer the choice of experts
};

struct WeightName {
    int  layer = -1;  // -1: of no layer
    Part part  = Part::other;
};

// The first that the rest of a name begins with counts.
constexpr struct {
    std::string_view stem;
    Part             part;
} k_stems[] = {
    { "ffn_norm", Part::near_ffn },
    { "ffn_", Part::ffn },
    { "ffn", Part::near_ffn },  // mpt: ffn.act.scales
    { "post_ffw", Part::near_ffn },
    { "pre_ffw", Part::near_ffn },
    { "post_attention_norm", Part::near_ffn },
    { "layer_output_norm", Part::near_ffn },
    { "exp_probs_b", Part::near_ffn },
};

// "blk.<layer>.<rest>", of the tensor or of what it is a copy of.
inline WeightName weight_name(std::string_view name) {
    name               = original_name(name);
    int          layer = -1;
    const char * end   = name.data() + name.size();
    const char * dot   = name.substr(0, 4) == "blk." ? std::from_chars(name.data() + 4, end, layer).ptr : end;
    if (layer < 0 || dot == end || *dot != '.') {
        return {};
    }
    const std::string_view rest(dot + 1, size_t(end - dot - 1));
    for (const auto & [stem, part] : k_stems) {
        if (rest.substr(0, stem.size()) == stem) {
            return { layer, part };
        }
    }
    return { layer, Part::other };
}

}  // namespace ffnskip
