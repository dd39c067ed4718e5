// What templates can have done to values by name.
#pragma once

#include "values.h"

#include <string>

namespace app::jinja {

// Both throw TemplateError for a name that is not known, and for values that they do not take.
Value operate(const std::string & name, const Value & of, const Call & call);  // filters, and methods
bool  test(const std::string & name, const Value & of, const List & args);

// `text` without white space at its end, Unicode's included.
std::string without_space(const std::string & text);

}  // namespace app::jinja
