#include "ffnskip/decode_status.h"

namespace ffnskip {

std::string decode_status(int32_t status) {
    if (status == 0) {
        return "";
    }
    const char * meaning = status == 1    ? "no room for the batch: the context is full"
                           : status == 2  ? "aborted by the abort callback"
                           : status == -1 ? "the batch is invalid"
                                          : "llama.cpp failed";
    return "llama_decode returned " + std::to_string(status) + ": " + meaning;
}

}  // namespace ffnskip
