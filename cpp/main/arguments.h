// The command line: options spelled and preset as llama-cli has them, and those of ffnskip.
#pragma once

#include <ffnskip/ffnskip.h>

#include <llama.h>

#include <optional>
#include <string>
#include <vector>

namespace app {

struct Arguments {
    bool help    = false;
    bool version = false;
    bool verbose = false;

    // model
    std::string              model;         // empty: the demo model
    std::vector<std::string> loras;         // files of adapters
    std::optional<int32_t>   n_gpu_layers;  // negative: all
    std::vector<std::string> rpc_servers;   // HOST:PORT

    // context
    std::optional<int32_t> n_ctx;  // 0: the model's
    int32_t                n_batch  = 2048;
    int32_t                n_ubatch = 512;
    std::optional<int32_t> n_threads;        // not given: one per core
    std::optional<int32_t> n_threads_batch;  // not given: as n_threads
    llama_flash_attn_type  flash_attn = LLAMA_FLASH_ATTN_TYPE_AUTO;
    ggml_type              type_k     = GGML_TYPE_F16;
    ggml_type              type_v     = GGML_TYPE_F16;

    // text
    std::optional<std::string> prompt;
    std::optional<std::string> prompt_file;
    std::vector<std::string>   reverse_prompts;
    int32_t                    n_predict      = -1;  // negative: to the end of the text or of the context
    bool                       escape         = true;
    bool                       display_prompt = true;

    // chat
    std::optional<bool>        conversation;  // not given: as the terminal suggests
    bool                       single_turn = false;
    std::optional<std::string> system_prompt;
    std::string                chat_template;  // empty: the model's

    // sampling
    uint32_t    seed              = LLAMA_DEFAULT_SEED;  // which stands for a random one
    float       temp              = 0.8f;                // 0: greedy
    int32_t     top_k             = 40;                  // 0 or less: off
    float       top_p             = 0.95f;               // 1: off
    float       min_p             = 0.05f;               // 0: off
    int32_t     repeat_last_n     = 64;                  // 0: no penalties
    float       repeat_penalty    = 1.0f;                // 1: off
    float       presence_penalty  = 0.0f;                // 0: off
    float       frequency_penalty = 0.0f;                // 0: off
    bool        ignore_eos        = false;
    std::string grammar;         // GBNF
    std::string grammar_source;  // the option it came from; empty: no grammar

    // skipping
    ffnskip::Config config;
    ffnskip::Reuse  reuse        = ffnskip::Reuse::all;
    bool            config_given = false;  // by options, those of a profile included
    std::string     profile;               // the file that `config` is from
    std::string     profile_model;         // fingerprint of the model that it is for
    bool            stats   = false;
    bool            compare = false;
    std::string     trace;

    std::vector<std::string> files_read;  // by options, the model aside

    // Whether another seed may give another text.
    bool is_random() const { return temp > 0.0f; }
    // An option asks for a chat in so many words.
    bool asks_for_chat() const {
        return conversation.value_or(false) || single_turn || system_prompt || !chat_template.empty();
    }
    // An option is of no use with a model that can't skip.
    bool asks_for_skipping() const {
        return compare || !trace.empty() || (config_given && config.policy != ffnskip::Policy::dense);
    }
};

// Throws BadInput, and std::invalid_argument for skip options that contradict each other: the option, its value, and
// what would be right.
Arguments parse_arguments(int argc, char ** argv);

std::string help_text();

}  // namespace app
