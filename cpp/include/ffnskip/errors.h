// What is thrown beside std::invalid_argument (a value that is not right) and std::runtime_error.
#pragma once

#include "ffnskip/export.h"

#include <cstdint>
#include <stdexcept>
#include <string>

namespace ffnskip FFNSKIP_API {

// The model or context has no FFN block that can be skipped, or one this version does not understand.
struct Unsupported : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The settings were found for another model.
struct ProfileMismatch : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

// Work was stopped by who was told how far it had come.
struct Interrupted : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// What llama_decode returned, in words: "llama_decode returned 1: no room for the batch: the context is full"; empty where
// it succeeded.
std::string decode_status(int32_t status);

struct DecodeError : std::runtime_error {
    explicit DecodeError(int32_t returned) : std::runtime_error(decode_status(returned)), status(returned) {}

    int32_t status;  // not 0
};

}  // namespace ffnskip FFNSKIP_API
