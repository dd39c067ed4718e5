// Every option of the command line.
#pragma once

#include "arguments.h"

#include <functional>
#include <string>
#include <vector>

namespace app {

// What a setter throws: what would have been right. The caller knows the option and the value.
struct Wanted {
    std::string text;
};

struct Option {
    std::vector<std::string>                                    names;
    const char *                                                value;  // placeholder of its value; null for a switch
    std::string                                                 help;
    std::function<void(Arguments &, const std::string & value)> set;
};

struct Section {
    const char *        title;
    std::vector<Option> options;
};

// In the order of --help.
const std::vector<Section> & sections();

}  // namespace app
