// What the names of tensors say: llama.cpp's of weights, and the scheduler's of copies.
#pragma once

#include <cstdint>
#include <string_view>

namespace ffnskip {

// A tensor the scheduler copied to another device is named "<device>#<name of the original>#<number>".
std::string_view original_name(std::string_view name);

inline bool is_copy(std::string_view name) {
    return original_name(name).size() != name.size();
}

struct WeightName {
    enum class Part : uint8_t {
        other,
        ffn,       // of an FFN block
        near_ffn,  // none, but may be read by one: norms around it, biases that steer the choice of experts
    };
    int  layer = -1;  // -1: of no layer
    Part part  = Part::other;
};

// "blk.<layer>.<rest>", of the tensor or of what it is a copy of.
WeightName weight_name(std::string_view name);

}  // namespace ffnskip
