// What files that belong to a model are named after.
#pragma once

#include <algorithm>
#include <string>

namespace ffnskip {

// The path of the model's file, or of the first of several, without its ending: dir/model of dir/model.gguf and
// dir/model-00001-of-00003.gguf.
inline std::string model_stem(const std::string & model_path) {
    std::string stem     = model_path;
    const auto  take_off = [&](const std::string & form) {  // with 0 for any digit
        std::string end = stem.substr(stem.size() - std::min(stem.size(), form.size()));
        std::replace_if(end.begin(), end.end(), [](char c) { return c >= '1' && c <= '9'; }, '0');
        stem.resize(stem.size() - (end == form ? form.size() : 0));
    };
    take_off(".gguf");
    take_off("-00000-of-00000");
    return stem;
}

// Where copies of its weights by channel are looked for.
inline std::string channel_file_path(const std::string & model_path) {
    return model_stem(model_path) + ".channels.gguf";
}

}  // namespace ffnskip
