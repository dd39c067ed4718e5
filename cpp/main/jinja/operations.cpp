#include "operations.h"

#include <algorithm>
#include <cctype>

namespace app::jinja {
namespace {

using V = const Value &;
using L = const List &;

const std::string & ascii(const std::string & text) {
    if (std::any_of(text.begin(), text.end(), [](char c) { return (c & 0x80) != 0; })) {
        fail("letters beyond ASCII are changed or taken away");
    }
    return text;
}

const std::vector<std::string> k_white_space = { " ",      "\t",     "\n",     "\v",     "\f",     "\r",
                                                 "\x1c",   "\x1d",   "\x1e",   "\x1f",   "\u0085", "\u00a0",
                                                 "\u1680", "\u2000", "\u2001", "\u2002", "\u2003", "\u2004",
                                                 "\u2005", "\u2006", "\u2007", "\u2008", "\u2009", "\u200a",
                                                 "\u2028", "\u2029", "\u202f", "\u205f", "\u3000" };

std::string stripped(std::string text, L args, bool left, bool right) {
    std::vector<std::string> given;
    for (const char c : args.empty() ? "" : ascii(args[0].text())) {
        given.push_back(std::string(1, c));
    }
    const auto & characters = args.empty() ? k_white_space : given;
    const auto   stands_at  = [&](bool at_end, const std::string & c) {
        return text.size() >= c.size() && text.compare(at_end ? text.size() - c.size() : 0, c.size(), c) == 0;
    };
    for (const bool at_end : { false, true }) {
        for (size_t i = 0; (at_end ? right : left) && i < characters.size(); ++i) {
            if (const std::string & c = characters[i]; stands_at(at_end, c)) {
                text.erase(at_end ? text.size() - c.size() : 0, c.size());
                i = size_t(-1);  // and all of them again
            }
        }
    }
    return text;
}

// The letters that `is_upper` says, by their place in a word from 1 on, in upper case; the others in lower case.
Value in_case(V of, bool (*is_upper)(int place)) {
    std::string text  = ascii(of.text());
    int         place = 0;
    for (char & c : text) {
        const auto letter = static_cast<unsigned char>(c);
        place             = std::isalpha(letter) != 0 ? place + 1 : 0;
        c                 = char(is_upper(place) ? std::toupper(letter) : std::tolower(letter));
    }
    return text;
}

const Value & argument(L args, size_t i) {
    if (i >= args.size()) {
        fail("an argument is missing");
    }
    return args[i];
}

Value split(V of, L args) {
    const std::string & text = of.text();
    const std::string & at   = argument(args, 0).text();
    const size_t        most = args.size() > 1 ? size_t(args[1].integer()) : std::string::npos;
    List                parts;
    size_t              from = 0;
    const auto          find = [&](size_t begin) { return at.empty() ? std::string::npos : text.find(at, begin); };
    for (size_t to; parts.size() < most && (to = find(from)) != std::string::npos; from = to + at.size()) {
        parts.push_back(text.substr(from, to - from));
    }
    parts.push_back(text.substr(from));
    return parts;
}

Value join(V of, L args) {
    std::string text;
    for (const Value & value : of.list()) {
        text += (&value == of.list().data() || args.empty() ? "" : args[0].text()) + to_text(value);
    }
    return text;
}

Value length(V of, L) {
    if (const auto * text = of.as<std::string>()) {
        return int64_t(std::count_if(text->begin(), text->end(), [](char c) { return (c & 0xC0) != 0x80; }));
    }
    return int64_t(of.is_a<Dict>() ? of.dict().size() : of.list().size());
}

Value get(V of, L args) {
    const auto found = of.dict().find(argument(args, 0).text());
    return found != of.dict().end() ? found->second : args.size() > 1 ? args[1] : Value(None());
}

Value select(V of, L args, bool wanted) {
    List chosen;
    for (const Value & value : of.list()) {
        const Value part = member(value, argument(args, 0));
        if ((args.size() == 1 ? is_true(part) : test(args[1].text(), part, List(args.begin() + 2, args.end()))) ==
            wanted) {
            chosen.push_back(value);
        }
    }
    return chosen;
}

bool ends(V of, L args, bool at_end) {
    const std::string &whole = of.text(), &part = argument(args, 0).text();
    return whole.size() >= part.size() &&
           whole.compare(at_end ? whole.size() - part.size() : 0, part.size(), part) == 0;
}

const std::map<std::string, Value (*)(V, L)> k_operations = {
    { "strip", [](V of, L args) { return Value(stripped(to_text(of), args, true, true)); } },
    { "trim", [](V of, L args) { return Value(stripped(to_text(of), args, true, true)); } },
    { "lstrip", [](V of, L args) { return Value(stripped(to_text(of), args, true, false)); } },
    { "rstrip", [](V of, L args) { return Value(stripped(to_text(of), args, false, true)); } },
    { "upper", [](V of, L) { return in_case(of, [](int) { return true; }); } },
    { "lower", [](V of, L) { return in_case(of, [](int) { return false; }); } },
    { "title", [](V of, L) { return in_case(of, [](int place) { return place == 1; }); } },
    { "startswith", [](V of, L args) { return Value(ends(of, args, false)); } },
    { "endswith", [](V of, L args) { return Value(ends(of, args, true)); } },
    { "split", split },
    { "replace", [](V of, L args) { return join(split(of, { argument(args, 0) }), { argument(args, 1) }); } },
    { "length", length },
    { "count", length },
    { "string", [](V of, L) { return Value(to_text(of)); } },
    { "list", [](V of, L) { return Value(of.list()); } },
    { "first", [](V of, L) { return member(of.list(), int64_t(0)); } },
    { "last", [](V of, L) { return member(of.list(), int64_t(-1)); } },
    { "join", join },
    { "get", get },
    { "selectattr", [](V of, L args) { return select(of, args, true); } },
    { "rejectattr", [](V of, L args) { return select(of, args, false); } },
};

bool is_iterable(V of, L) {
    return of.is_a<std::string>() || of.is_a<List>() || of.is_a<Dict>();
}

bool equals_argument(V of, L args) {
    return is_equal(of, argument(args, 0));
}

const std::map<std::string, bool (*)(V, L)> k_tests = {
    { "defined", [](V of, L) { return !of.is_a<Undefined>(); } },
    { "undefined", [](V of, L) { return of.is_a<Undefined>(); } },
    { "none", [](V of, L) { return of.is_a<None>(); } },
    { "string", [](V of, L) { return of.is_a<std::string>(); } },
    { "mapping", [](V of, L) { return of.is_a<Dict>(); } },
    { "iterable", is_iterable },
    { "sequence", is_iterable },
    { "true", [](V of, L) { return of.is_a<bool>() && *of.as<bool>(); } },
    { "false", [](V of, L) { return of.is_a<bool>() && !*of.as<bool>(); } },
    { "odd", [](V of, L) { return of.integer() % 2 != 0; } },
    { "even", [](V of, L) { return of.integer() % 2 == 0; } },
    { "equalto", equals_argument },
    { "eq", equals_argument },
    { "==", equals_argument },
    { "in", [](V of, L args) { return contains(argument(args, 0), of); } },
};

}  // namespace

std::string without_space(const std::string & text) {
    return stripped(text, {}, false, true);
}

Value operate(const std::string & name, const Value & of, const Call & call) {
    const List & args = call.list;
    if (name == "default" || name == "d") {  // the only one that takes what is not defined
        return of.is_a<Undefined>() || (args.size() > 1 && is_true(args[1]) && !is_true(of)) ? argument(args, 0) : of;
    }
    const auto found = k_operations.find(name);
    if (found == k_operations.end() || !call.named.empty()) {
        fail("'" + name + "' is not known here");
    }
    return found->second(of, args);
}

bool test(const std::string & name, const Value & of, const List & args) {
    const auto found = k_tests.find(name);
    if (found == k_tests.end()) {
        fail("the test '" + name + "' is not known here");
    }
    return found->second(of, args);
}

}  // namespace app::jinja
