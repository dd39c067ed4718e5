#include "jinja.h"

#include "parser.h"

#include <ctime>

namespace app {
namespace jinja {
namespace {

Value raise_exception(Scopes &, const Call & args) {
    fail("it says '" + (args.list.empty() ? "" : to_text(args.list[0])) + "'");
}

Value make_namespace(Scopes &, const Call & args) {
    return args.named;
}

Value strftime_now(Scopes &, const Call & args) {
    const std::time_t now = std::time(nullptr);
    const std::string how = args.list.empty() ? "" : args.list[0].text();
    char              text[256];
    return std::string(text, std::strftime(text, sizeof(text), how.c_str(), std::localtime(&now)));
}

Value range(Scopes &, const Call & args) {
    const auto number = [&](size_t i, int64_t otherwise) {
        return i < args.list.size() ? args.list[i].integer() : otherwise;
    };
    const bool    to_only = args.list.size() == 1;
    const int64_t first = to_only ? 0 : number(0, 0), last = number(to_only ? 0 : 1, 0), step = number(2, 1);
    List          all;
    for (int64_t i = first; step > 0 ? i < last : i > last; i += step) {
        if (step == 0 || all.size() == 10000) {
            fail("a range is too long");
        }
        all.emplace_back(i);
    }
    return all;
}

}  // namespace
}  // namespace jinja

std::string render_jinja(const std::string & chat_template, const std::vector<Message> & messages,
                         const std::string & bos, const std::string & eos) {
    using namespace jinja;
    List list;
    for (const Message & message : messages) {
        list.push_back(Dict{ { "role", message.role }, { "content", message.content } });
    }
    Scopes scopes;
    Dict & globals                   = scopes.all[0];
    globals["messages"]              = list;
    globals["bos_token"]             = bos;
    globals["eos_token"]             = eos;
    globals["add_generation_prompt"] = true;
    globals["raise_exception"]       = Function(raise_exception);
    globals["namespace"]             = Function(make_namespace);
    globals["strftime_now"]          = Function(strftime_now);
    globals["range"]                 = Function(range);
    for (const char * none : { "tools", "tool_choice", "functions", "function_call" }) {
        globals[none] = None();
    }
    std::string text;
    write(Parser(read_tokens(chat_template)).block({}), scopes, text);
    return text;
}

}  // namespace app
