// What llama_decode returned, in words.
#pragma once

#include "ffnskip/export.h"

#include <cstdint>
#include <stdexcept>
#include <string>

namespace ffnskip FFNSKIP_API {

// "llama_decode returned 1: no room for the batch: the context is full"; empty where it succeeded.
std::string decode_status(int32_t status);

struct DecodeError : std::runtime_error {
    explicit DecodeError(int32_t returned) : std::runtime_error(decode_status(returned)), status(returned) {}

    int32_t status;  // not 0
};

}  // namespace ffnskip
