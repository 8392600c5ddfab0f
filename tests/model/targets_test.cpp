// SPDX-License-Identifier: MIT
// Which modules the patterns meet: PEFT's own answers, the report, and what is refused.
#include "support/catch.hpp"
#include "support/message.hpp"

#include <lora/model/targets.hpp>

#include <array>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

using namespace lora;
using namespace lora::test;

namespace {

std::vector<std::string> split(const std::string& text, const std::string& separator) {
  std::vector<std::string> parts;
  std::size_t start = 0;
  for (std::size_t end; (end = text.find(separator, start)) != std::string::npos; start = end + separator.size()) {
    parts.push_back(text.substr(start, end - start));
  }
  parts.push_back(text.substr(start));
  if (parts == std::vector<std::string>{""}) parts.clear();
  return parts;
}

/// A small llama.
std::vector<ModuleShape> llama() {
  std::vector<ModuleShape> modules;
  for (const std::string layer : {"0", "1", "10"}) {
    for (const std::string name : {"self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"}) {
      modules.push_back({"model.layers." + layer + "." + name, 16, name == "self_attn.v_proj" ? 4 : 16});
    }
  }
  modules.push_back({"lm_head", 16, 40});
  return modules;
}

std::vector<std::string> names_of(const TargetPlan& plan) {
  std::vector<std::string> names;
  for (const auto& layer : plan.layers) names.push_back(layer.name);
  return names;
}

std::string refused(const TargetConfig& config, const std::vector<ModuleShape>& modules = llama()) {
  return message_of<ConfigError>([&] { plan(modules, config); });
}

}  // namespace

TEST_CASE("every name is met or not as PEFT answered", "[model][targets][parity]") {
  std::ifstream text(std::string(LORA_MODEL_DATA) + "/targets.txt");
  REQUIRE(text);
  int questions = 0;
  for (std::string line; std::getline(text, line);) {
    if (line.starts_with('#')) continue;
    const auto fields = split(line, "\t");
    REQUIRE(fields.size() == 4);
    const auto& [kind, what, name, answer] = std::array{fields[0], fields[1], fields[2], fields[3]};
    const std::vector<ModuleShape> module{{name, 100, 100}};
    TargetConfig config{.unmatched = Unmatched::Report};
    if (kind == "list") {
      config.targets = split(what, "|");
    } else if (kind == "pattern") {
      config.pattern = what;
    } else if (kind == "layers") {
      const auto parts = split(what, ";");
      config.targets = split(parts[0], "|");
      for (const auto& number : split(parts[1], "|")) config.layers_to_transform.push_back(std::stol(number));
      config.layers_pattern = split(parts[2], "|");
    } else if (kind == "save") {
      config.pattern = "all-linear";
      config.modules_to_save = {what};
    } else {
      REQUIRE(kind == "first");
      config.pattern = "All-Linear";
      config.lora.rank = 50;
      Index rank = 1;  // the place in the list, from 1
      for (const auto& pattern : split(what, " ;; ")) config.rank_pattern.emplace_back(pattern, rank++);
    }
    INFO(line);
    const auto found = plan(module, config);
    if (kind == "first") {
      CHECK(found.layers.at(0).config.rank == (answer == "-1" ? 50 : std::stol(answer) + 1));
    } else {
      CHECK(found.layers.size() == ((kind == "save") != (answer == "1") ? 1 : 0));
    }
    ++questions;
  }
  CHECK(questions > 500);
}

TEST_CASE("a plan has config, rank and alpha of each layer, in the order of the modules", "[model][targets]") {
  const TargetConfig config{.targets = {"v_proj", "q_proj"},
                            .exclude = {"layers.10.self_attn.v_proj"},
                            .lora = {.rank = 4, .alpha = 8, .scaling = Scaling::RankStabilized, .dropout = 0.5},
                            .rank_pattern = {{R"(layers\.1\..*)", 2}, {"q_proj", 3}},
                            .alpha_pattern = {{"v_proj", 5}}};
  const auto found = plan(llama(), config);
  CHECK(names_of(found) ==
        std::vector<std::string>{"model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj",
                                 "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj",
                                 "model.layers.10.self_attn.q_proj"});
  const auto with = [&](Index rank, double alpha) {
    auto lora = config.lora;
    lora.rank = rank;
    lora.alpha = alpha;
    return lora;
  };
  CHECK(found.layers[0].config == with(3, 8));
  CHECK(found.layers[1].config == with(4, 5));
  CHECK(found.layers[2].config == with(2, 8));
  CHECK(found.layers[3].config == with(2, 5));
  CHECK(found.layers[4].config == with(3, 8));
  CHECK(found.layers[1].in_features == 16);
  CHECK(found.layers[1].out_features == 4);
  CHECK(found.parameters() == 3 * 32 + 4 * 20 + 2 * 32 + 2 * 20 + 3 * 32);

  CHECK(found.matches.size() == 6);
  CHECK(found.matches[0] == PatternMatches{"targets", "v_proj", {names_of(found)[1], names_of(found)[3]}});
  CHECK(found.matches[2] ==
        PatternMatches{"exclude", "layers.10.self_attn.v_proj", {"model.layers.10.self_attn.v_proj"}});
  CHECK(found.matches[4] == PatternMatches{"rank_pattern", "q_proj", {names_of(found)[0], names_of(found)[4]}});
  CHECK(found.matches[5].count() == 2);
}

TEST_CASE("the report of a plan is two tables", "[model][targets]") {
  const auto found =
      plan(llama(), {.pattern = R"(.*\.(0|1)\..*_proj)", .lora = {.rank = 2}, .alpha_pattern = {{"q_proj", 3}}});
  CHECK(found.describe() ==
        "entry                       modules\n"
        "pattern .*\\.(0|1)\\..*_proj        6\n"
        "alpha_pattern q_proj              2\n"
        "\n"
        "layer                             n   m  r  scale  parameters\n"
        "model.layers.0.self_attn.q_proj  16  16  2    1.5          64\n"
        "model.layers.0.self_attn.v_proj  16   4  2      8          40\n"
        "model.layers.0.mlp.down_proj     16  16  2      8          64\n"
        "model.layers.1.self_attn.q_proj  16  16  2    1.5          64\n"
        "model.layers.1.self_attn.v_proj  16   4  2      8          40\n"
        "model.layers.1.mlp.down_proj     16  16  2      8          64\n");
}

TEST_CASE("all-linear is every module but the excluded", "[model][targets]") {
  const auto found = plan(llama(), {.pattern = "all-linear", .exclude = {"lm_head"}, .lora = {.rank = 2}});
  CHECK(found.layers.size() == 9);
  CHECK(plan(llama(), {.pattern = "all-linear", .exclude_pattern = "lm_.*", .lora = {.rank = 2}}).layers ==
        found.layers);
}

TEST_CASE("an entry that meets nothing is named, or reported where that is asked for", "[model][targets][errors]") {
  const auto none = [](const std::string& entry) {
    return "plan: every entry must match a module, got none for " + entry;
  };
  const LoraConfig lora{.rank = 2};
  CHECK(refused({.targets = {"q_proj", "k_proj"}, .lora = lora}) == none("targets k_proj"));
  CHECK(refused({.pattern = "q_proj", .lora = lora}) == none("pattern q_proj"));
  CHECK(refused({.targets = {"q_proj"}, .exclude = {"head"}, .lora = lora}) == none("exclude head"));
  CHECK(refused({.targets = {"q_proj"}, .exclude_pattern = "head", .lora = lora}) == none("exclude_pattern head"));
  CHECK(refused({.targets = {"q_proj"}, .exclude = {"q_proj"}, .lora = lora}) == none("targets q_proj"));
  CHECK(refused({.targets = {"q_proj"}, .layers_to_transform = {0, 7}, .lora = lora}) == none("layers_to_transform 7"));
  CHECK(refused({.targets = {"q_proj"}, .lora = lora, .rank_pattern = {{"v_proj", 1}}}) == none("rank_pattern v_proj"));
  CHECK(refused({.targets = {"q_proj"}, .lora = lora, .alpha_pattern = {{".*", 1}, {"q_proj", 2}}}) ==
        none("alpha_pattern q_proj"));  // always behind the first
  const auto found = plan(llama(), {.targets = {"k_proj"}, .lora = lora, .unmatched = Unmatched::Report});
  CHECK(found.layers.empty());
  CHECK(found.matches == std::vector<PatternMatches>{{"targets", "k_proj", {}}});
}

TEST_CASE("a value that a layer cannot have is refused by the layer's name", "[model][targets][errors]") {
  CHECK(refused({.targets = {"q_proj", "v_proj"}, .lora = {.rank = 8}}) ==
        "plan: module model.layers.0.self_attn.v_proj: rank must lie in [1, min(n, m)] = [1, 4], got 8");
  CHECK(refused({.targets = {"q_proj"}, .rank_pattern = {{"layers.1.*q_proj", 0}}}) ==
        "plan: module model.layers.1.self_attn.q_proj: rank must lie in [1, min(n, m)] = [1, 16], got 0");
  CHECK(refused({.targets = {"q_proj"}, .alpha_pattern = {{"q_proj", -1}}}) ==
        "plan: module model.layers.0.self_attn.q_proj: alpha must be positive and finite, got -1");
  CHECK(refused({.targets = {"q_proj"}, .lora = {.dropout = 1}}) ==
        "plan: module model.layers.0.self_attn.q_proj: dropout must lie in [0, 1), got 1");
}

TEST_CASE("module names are checked", "[model][targets][errors]") {
  const TargetConfig config{.targets = {"q"}, .lora = {.rank = 1}};
  CHECK(refused(config, {{"q", 2, 2}, {"", 2, 2}}) == "plan: a module's name must have 1 to 500 bytes, got 0");
  const std::string name = std::string(498, 'a') + ".q";
  CHECK(refused(config, {{name, 2, 2}}) == "[no error]");
  CHECK(refused(config, {{"b" + name, 2, 2}}) ==
        "plan: a module's name must have 1 to 500 bytes, got 501 in b" + std::string(39, 'a'));
  CHECK(refused(config, {{"q", 2, 2}, {"a\n.q", 2, 2}}) ==
        "plan: a module's name must not hold control characters, got one in module 1");
  CHECK(refused(config, {{"q", 2, 2}, {"a.q", 2, 2}, {"q", 2, 2}}) == "plan: names must differ, got a second module q");
  CHECK(message_of<ShapeError>([&] {
          plan(std::vector<ModuleShape>{{"q", 2, 0}}, config);
        }) == "plan: module q must be at least 1 x 1, got 2 x 0");
}

TEST_CASE("fields that contradict each other are refused", "[model][targets][errors]") {
  CHECK(refused({}) == "plan: needs either targets or a pattern, got neither");
  CHECK(refused({.targets = {"q"}, .pattern = "q"}) == "plan: needs either targets or a pattern, got both");
  CHECK(refused({.targets = {"q"}, .exclude = {"v"}, .exclude_pattern = "v"}) ==
        "plan: needs either exclude or exclude_pattern, got both");
  CHECK(refused({.pattern = "q", .layers_to_transform = {1}}) ==
        "plan: layers_to_transform goes with targets, got a pattern");
  CHECK(refused({.targets = {"q"}, .layers_pattern = {"h"}}) ==
        "plan: layers_pattern goes with layers_to_transform, got it alone");
  CHECK(refused({.targets = {"q", ""}}) == "plan: an entry must not be empty, got an empty one in targets");
  CHECK(refused({.targets = {"q"}, .rank_pattern = {{"", 1}}}) ==
        "plan: an entry must not be empty, got an empty one in rank_pattern");
}

TEST_CASE("broken patterns, and those that Python reads differently, are refused", "[model][targets][errors]") {
  const auto broken = [](const std::string& pattern) {
    const auto message = refused({.pattern = pattern});
    const std::string start = "plan: pattern must be a regular expression, got " + pattern + " (";
    return message.substr(0, start.size()) == start ? "broken" : message;
  };
  for (const char* pattern :
       {"(", ")", "a)|(b", "[a", "*a", "a{2", "(?P<x>a)", "(?<=a)b", "(?i)a", "a{2,1}", "[b-a]"}) {
    CAPTURE(pattern);
    CHECK(broken(pattern) == "broken");
  }
  const auto differs = [](const std::string& pattern) {
    const auto message = refused({.pattern = pattern});
    const std::string start = "plan: pattern must not ";
    REQUIRE(message.starts_with(start));
    return message.substr(start.size());
  };
  const std::string escapes =
      "use an escape other than \\d \\w \\s \\b (or their opposites) and \\n \\r \\t \\f \\v \\x; groups cannot be "
      "referred to, got ";
  for (const std::string pattern : {R"((a)\1)", R"(\Aa)", R"(a\Z)", R"(\0)", R"(\cA)", R"([\b])", R"(\q)"}) {
    CHECK(differs(pattern) == escapes + pattern);
  }
  CHECK(differs("[[:alpha:]]") == "use POSIX classes, got [[:alpha:]]");
  CHECK(differs("[]a]") == "use a class that begins with ], got []a]");
  CHECK(differs("[^]a]") == "use a class that begins with ], got [^]a]");
  CHECK(differs("a*+") == "put one quantifier behind another, got a*+");
  CHECK(differs("a{2}{3}") == "put one quantifier behind another, got a{2}{3}");
  CHECK(differs("(?=.*(?=.*(?!x))).*") == "look ahead more than twice, got (?=.*(?=.*(?!x))).*");
  CHECK(differs("a\\") == "end with a backslash, got a\\");
  CHECK(refused({.targets = {"q_proj"}, .rank_pattern = {{"a)|(b", 1}}})
            .starts_with("plan: rank_pattern must be a regular"));
  for (const char* pattern : {R"(.*[\]\[()].*)", "a??|.*", R"(.*\.q_proj+?|lm_head)", "(?:(?=l)lm_head)?(?!x).*"}) {
    CAPTURE(pattern);
    CHECK(message_of<ConfigError>([&] {
            plan(llama(), {.pattern = pattern, .lora = {.rank = 1}, .unmatched = Unmatched::Report});
          }) == "[no error]");
  }
}

TEST_CASE("the longest, deepest and most repetitive patterns that pass return in bounded time and stack",
          "[model][targets]") {
  const std::vector<ModuleShape> module{{std::string(499, 'a') + "b", 2, 2}};
  const auto matches = [&](const std::string& pattern) {
    return plan(module, {.pattern = pattern, .lora = {.rank = 1}, .unmatched = Unmatched::Report}).layers.size() == 1;
  };
  CHECK_FALSE(matches("(a+)+$"));  // exponential where an engine backtracks
  CHECK_FALSE(matches("(a|aa)+"));
  CHECK(matches("(a+)+b"));
  CHECK(matches(".*.*.*.*.*.*.*.*.*b"));
  CHECK_FALSE(matches("(a?){1000}"));
  CHECK_FALSE(matches("((a?){25}){25}"));
  CHECK(matches("((a?){25}){25}b"));
  std::string alternatives = "x";
  while (alternatives.size() < 3990) alternatives += "|x";
  CHECK_FALSE(matches(alternatives));
  CHECK(matches(std::string(50, '(') + ".*" + std::string(50, ')')));
  const auto message = [&](const std::string& pattern) { return refused({.pattern = pattern}, module); };
  CHECK(message(std::string(51, '(') + ".*" + std::string(51, ')')).starts_with("plan: pattern must not nest groups"));
  CHECK(message("(a?){2000}") == "plan: pattern must not repeat as often as that, got (a?){2000}");
  CHECK(message("((a?){40}){40}") == "plan: pattern must not repeat as often as that, got ((a?){40}){40}");
  CHECK(message("a{99999999999999999999}") ==
        "plan: pattern must not repeat as often as that, got a{99999999999999999999}");
  CHECK(message(std::string(4001, 'a')) == "plan: pattern must not be longer than 4000 characters, got 4001");
  CHECK(message("(\x1b[31m\nx").starts_with("plan: pattern must be a regular expression, got (?[31m?x ("));
  CHECK(message("\x1b\\q").ends_with("groups cannot be referred to, got ?\\q"));
}

TEST_CASE("patterns that take too much together are refused", "[model][targets][errors]") {
  const std::string large = "[ab]{999}";  // 9 letters, so that 22 of them pass
  const auto message = [&](TargetConfig config) {
    config.targets = {"q_proj"};
    config.lora.rank = 1;
    config.unmatched = Unmatched::Report;
    return message_of<ConfigError>([&] { plan(llama(), config); });
  };
  const std::string rule =
      " must have patterns of at most 200000 letters, counted as often as they repeat, got more by " + large;
  CHECK(message({.rank_pattern = {22, {large, 1}}}) == "[no error]");
  CHECK(message({.rank_pattern = {600, {large, 1}}}) == "plan: rank_pattern" + rule);
  CHECK(message({.alpha_pattern = {600, {large, 1}}}) == "plan: alpha_pattern" + rule);
  CHECK(message({.modules_to_save = {600, large}}) == "plan: modules_to_save" + rule);
  CHECK(message({.layers_to_transform = {0}, .layers_pattern = {600, large}}) == "plan: layers_pattern" + rule);
}
