#include "model.h"

#include "errors.h"
#include "gguf_magic.h"
#include "log.h"
#include "machine.h"
#include "text.h"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <stdexcept>

namespace app {
namespace {

// Whether libllama puts a token after a text.
bool adds_at_end(const llama_vocab * vocab) {
    return llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_WPM ? llama_vocab_get_add_sep(vocab)
                                                           : llama_vocab_get_add_eos(vocab);
}

// libllama aborts the process, or decodes nonsense, for models that don't generate text token by token.
void require_generator(const llama_model * model, const std::string & what) {
    const char * reason = nullptr;
    if (llama_model_has_encoder(model) || !llama_model_has_decoder(model)) {
        reason = "it has an encoder";
    } else if (llama_model_is_diffusion(model)) {
        reason = "it is a diffusion model";
    } else if (llama_vocab_type(llama_model_get_vocab(model)) == LLAMA_VOCAB_TYPE_NONE) {
        reason = "it has no vocabulary";
    }
    if (reason != nullptr) {
        throw BadInput(what + ": " + reason + "; a model that generates text token by token is needed");
    }
}

}  // namespace

std::vector<std::string> model_files(const std::string & path) {
    int          n_files = 1;
    const size_t of      = path.rfind("-of-");  // name-00001-of-00003.gguf
    if (of == std::string::npos || std::sscanf(path.c_str() + of, "-of-%5d.gguf", &n_files) != 1) {
        return { path };
    }
    std::vector<std::string> files;
    for (int i = 0; i < n_files; ++i) {
        std::vector<char> file(path.size() + 1);
        const size_t      number = of - std::min<size_t>(of, 6);
        llama_split_path(file.data(), file.size(), path.substr(0, number).c_str(), i, n_files);
        files.push_back(file.data());
    }
    return files;
}

Model::Model(const Arguments & args) : path_(args.model.empty() ? demo_model() : args.model) {
    const std::string what = name();
    require_file("--model", path_);
    if (!ffnskip::is_gguf(path_)) {
        throw BadInput(what + ": it is no GGUF file");
    }

    ffnskip::add_rpc_servers(args.rpc_servers);
    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers       = args.n_gpu_layers.value_or(params.n_gpu_layers);
    take_error();
    explain_aborts(what, 2);
    model_.reset(llama_model_load_from_file(path_.c_str(), params));
    if (model_ == nullptr) {
        throw BadInput(what + ": libllama can't load it: " + take_error());
    }
    require_generator(model_.get(), what);
    for (const std::string & lora : args.loras) {
        require_file("--lora", lora);
        take_error();
        adapters_.push_back(llama_adapter_lora_init(model_.get(), lora.c_str()));
        if (adapters_.back() == nullptr) {
            throw BadInput("--lora '" + lora + "': it is no LoRA adapter of this model: " + take_error());
        }
    }
}

void Model::apply_adapters(llama_context * context) const {
    std::vector<llama_adapter_lora *> adapters = adapters_;
    std::vector<float>                scales(adapters.size(), 1.0f);
    if (!adapters.empty() && llama_set_adapters_lora(context, adapters.data(), adapters.size(), scales.data()) != 0) {
        throw std::runtime_error("the LoRA adapters can't be applied: " + take_error());
    }
}

Tokens Model::tokenize(const std::string & text, bool begin) const {
    constexpr size_t k_specials = 2;  // at most, at the beginning and at the end
    if (text.size() > size_t(std::numeric_limits<int32_t>::max()) - k_specials) {
        throw BadInput("the text is too long: " + std::to_string(text.size()) + " bytes; 2 GiB can be read");
    }
    const int32_t length = int32_t(text.size());
    Tokens        tokens(text.size() + k_specials);
    const auto    run = [&] {
        return llama_tokenize(vocab(), text.data(), length, tokens.data(), int32_t(tokens.size()), begin, true);
    };
    int32_t n_tokens = run();
    if (n_tokens < 0 && n_tokens != std::numeric_limits<int32_t>::min()) {
        tokens.resize(size_t(-n_tokens));
        n_tokens = run();
    }
    if (n_tokens < 0) {
        throw BadInput("the text is too long: " + std::to_string(text.size()) + " bytes");
    }
    tokens.resize(size_t(n_tokens));
    if (begin && adds_at_end(vocab()) && !tokens.empty()) {
        tokens.pop_back();
    }
    return tokens;
}

std::string Model::piece(llama_token token, bool special) const {
    if (token == LLAMA_TOKEN_NULL) {
        return "";
    }
    std::string text(64, '\0');
    int32_t     length = llama_token_to_piece(vocab(), token, text.data(), int32_t(text.size()), 0, special);
    if (length < 0) {
        text.resize(size_t(-length));
        length = llama_token_to_piece(vocab(), token, text.data(), int32_t(text.size()), 0, special);
    }
    text.resize(size_t(length));
    return text;
}

}  // namespace app
