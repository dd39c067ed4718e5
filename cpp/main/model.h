// The model file, its vocabulary and its LoRA adapters.
#pragma once

#include "arguments.h"

#include <llama.h>

#include <memory>
#include <string>
#include <vector>

namespace app {

using Tokens = std::vector<llama_token>;

// The files of a model that is split, or the one file.
std::vector<std::string> model_files(const std::string & path);

class Model {
public:
    // Throws BadInput: which file, and what is wrong with it.
    explicit Model(const Arguments & args);

    llama_model *       get() const { return model_.get(); }
    const std::string & path() const { return path_; }
    // As messages name it.
    std::string         name() const { return "--model '" + path_ + "'"; }
    const llama_vocab * vocab() const { return llama_model_get_vocab(model_.get()); }

    // Special tokens are recognised by their text; `begin` adds those that the model wants at the beginning. What it
    // wants at the end is left out: the text goes on.
    Tokens tokenize(const std::string & text, bool begin) const;
    // Bytes of the token, which need not be whole characters; special tokens have some only if `special`, and
    // LLAMA_TOKEN_NULL has none.
    std::string piece(llama_token token, bool special) const;

    void apply_adapters(llama_context * context) const;

private:
    struct Free {
        void operator()(llama_model * model) const { llama_model_free(model); }
    };

    std::string                        path_;
    std::unique_ptr<llama_model, Free> model_;
    std::vector<llama_adapter_lora *>  adapters_;  // freed with the model
};

}  // namespace app
