// Numbers as users write them.
#pragma once

#include <cctype>
#include <charconv>
#include <cstdlib>
#include <optional>
#include <string>
#include <system_error>
#include <type_traits>

namespace ffnskip {

// What all of `text` says; nullopt where that is no Number, or too large for one.
template <typename Number> std::optional<Number> parse_number(const std::string & text) {
    Number             number{};
    const char * const end = text.data() + text.size();
    if constexpr (std::is_integral_v<Number>) {
        const auto [at, error] = std::from_chars(text.data(), end, number);
        return error == std::errc() && at == end ? std::optional<Number>(number) : std::nullopt;
    } else {
        char * at         = nullptr;
        number            = Number(std::strtod(text.c_str(), &at));
        const bool begins = !text.empty() && std::isspace(static_cast<unsigned char>(text[0])) == 0;
        return begins && at == end ? std::optional<Number>(number) : std::nullopt;
    }
}

}  // namespace ffnskip
