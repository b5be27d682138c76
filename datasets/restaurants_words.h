// The words of the restaurants language, once: the grammar writes with these tables and the slot
// error reads with them.
#pragma once

#include <span>
#include <string_view>

namespace lte {

// One value of a slot. Each field but `mr` lists phrases, separated by '|', for one place in a
// sentence. All of them together are the value's realisations; none belongs to two values.
struct SlotValue {
  std::string_view mr;           // as in the meaning representation
  std::string_view before = {};  // before a noun, or after "is": "cheap"
  std::string_view thing = {};   // a noun phrase: "low prices"
  std::string_view does = {};    // a verb phrase: "welcomes families"
  std::string_view clause = {};  // a sentence of its own: "children are welcome"
  std::string_view where = {};   // "by the river"
};

inline constexpr SlotValue kEatTypes[] = {
    {.mr = "pub", .thing = "pub"},
    {.mr = "restaurant", .thing = "restaurant"},
    {.mr = "coffee shop", .thing = "coffee shop|coffee house"},
    {.mr = "wine bar", .thing = "wine bar"},
    {.mr = "bistro", .thing = "bistro"},
    {.mr = "diner", .thing = "diner"},
    {.mr = "tea room", .thing = "tea room|tearoom"},
};

inline constexpr SlotValue kFoods[] = {
    {.mr = "French", .before = "French", .thing = "onion soup and crepes|snails in garlic butter"},
    {.mr = "Italian", .before = "Italian", .thing = "pasta and pizza|fresh pasta|risotto"},
    {.mr = "Chinese", .before = "Chinese", .thing = "dim sum|stir-fried noodles and dumplings"},
    {.mr = "Indian", .before = "Indian", .thing = "curries and naan|curry and rice"},
    {.mr = "Japanese", .before = "Japanese", .thing = "sushi and ramen|sushi"},
    {.mr = "Thai", .before = "Thai", .thing = "green curry and pad thai|pad thai"},
    {.mr = "Mexican", .before = "Mexican", .thing = "tacos and burritos|tacos"},
    {.mr = "Greek", .before = "Greek", .thing = "moussaka|souvlaki and olives"},
    {.mr = "Turkish", .before = "Turkish", .thing = "kebabs|kebabs and flatbread"},
    {.mr = "Spanish", .before = "Spanish", .thing = "tapas|paella and tapas"},
    {.mr = "Korean", .before = "Korean", .thing = "kimchi and grilled beef|bibimbap"},
    {.mr = "Vietnamese", .before = "Vietnamese", .thing = "pho and spring rolls|pho"},
    {.mr = "Lebanese", .before = "Lebanese", .thing = "falafel and hummus|falafel"},
    {.mr = "Ethiopian",
     .before = "Ethiopian",
     .thing = "injera with lentils|spicy stews on injera"},
    {.mr = "Moroccan", .before = "Moroccan", .thing = "tagines|couscous and tagines"},
    {.mr = "Polish", .before = "Polish", .thing = "pierogi|beetroot soup and pierogi"},
    {.mr = "English", .before = "English", .thing = "pies and roasts|fish and chips"},
    {.mr = "Russian", .before = "Russian", .thing = "borscht|blini and borscht"},
    {.mr = "Peruvian", .before = "Peruvian", .thing = "ceviche|ceviche and grilled corn"},
    {.mr = "vegan", .before = "vegan|plant-based", .thing = "dishes without meat or milk"},
};

inline constexpr SlotValue kPrices[] = {
    {.mr = "cheap",
     .before = "cheap|inexpensive|low-priced|affordable",
     .thing = "low prices|a low price range|bargain prices|prices that are easy on the purse"},
    {.mr = "moderate",
     .before = "moderately priced|mid-priced|reasonably priced|average-priced",
     .thing = "moderate prices|average prices|a moderate price range|fair prices"},
    {.mr = "high",
     .before = "expensive|high-priced|upmarket|costly",
     .thing = "high prices|a high price range|steep prices|prices above the average"},
    {.mr = "under 15 pounds",
     .thing =
         "prices under 15 pounds|meals for less than 15 pounds|dishes under 15 pounds|main courses "
         "for less than 15 pounds"},
    {.mr = "20 to 30 pounds",
     .thing = "prices of 20 to 30 pounds|meals for 20 to 30 pounds|a price range of 20 to 30 "
              "pounds|dishes between 20 and 30 pounds"},
    {.mr = "over 40 pounds",
     .thing =
         "prices over 40 pounds|meals for more than 40 pounds|dishes over 40 pounds|main courses "
         "for more than 40 pounds"},
};

inline constexpr SlotValue kRatings[] = {
    {.mr = "low",
     .before = "poorly rated|badly reviewed|low-rated",
     .thing = "a low customer rating|poor reviews|a low rating|weak reviews"},
    {.mr = "average",
     .before = "averagely rated|decently rated",
     .thing = "an average customer rating|mixed reviews|an average rating|middling reviews"},
    {.mr = "high",
     .before = "highly rated|well-reviewed|well-liked",
     .thing = "a high customer rating|excellent reviews|a high rating|very good reviews"},
    {.mr = "1 out of 5",
     .before = "one-star",
     .thing =
         "a rating of 1 out of 5|a customer rating of 1 out of 5|only one star|1 out of 5 stars"},
    {.mr = "3 out of 5",
     .before = "three-star",
     .thing =
         "a rating of 3 out of 5|a customer rating of 3 out of 5|three stars|3 out of 5 stars"},
    {.mr = "4 out of 5",
     .before = "four-star",
     .thing = "a rating of 4 out of 5|a customer rating of 4 out of 5|four stars|4 out of 5 stars"},
    {.mr = "5 out of 5",
     .before = "five-star|top-rated",
     .thing =
         "a rating of 5 out of 5|a customer rating of 5 out of 5|five stars|5 out of 5 stars|the "
         "best possible rating"},
};

inline constexpr SlotValue kAreas[] = {
    {.mr = "riverside",
     .where =
         "by the river|on the riverside|in the riverside area|beside the river|on the banks of "
         "the river|down by the riverside"},
    {.mr = "city centre",
     .where =
         "in the city centre|in the centre of the city|in the heart of the city|downtown|in the "
         "middle of the city|in the city centre area"},
    {.mr = "harbour",
     .where =
         "at the harbour|by the harbour|in the harbour area|down at the harbour|on the harbour "
         "front"},
    {.mr = "old town",
     .where = "in the old town|in the old part of town|in the heart of the old town|in the narrow "
              "streets of the old town"},
    {.mr = "market square",
     .where =
         "on the market square|at the market square|beside the market square|right on the market "
         "square"},
    {.mr = "suburbs",
     .where = "in the suburbs|on the edge of the city|out in the suburbs|on the outskirts"},
};

inline constexpr SlotValue kFamily[] = {
    {.mr = "yes",
     .before = "family-friendly|child-friendly|kid-friendly|family friendly",
     .does =
         "welcomes families|welcomes children|is suitable for children|is good for families|has a "
         "menu for children|caters for families|is a fine choice for families with children",
     .clause =
         "children are welcome|kids are welcome|families are welcome|you can bring the "
         "kids|there is a play corner for the little ones|the whole family will feel at home"},
    {.mr = "no",
     .before = "adults-only",
     .does =
         "is not family-friendly|is not suitable for children|does not welcome children|does not "
         "cater for families|is for adults only|is no place for kids|is not child-friendly|does "
         "not admit children",
     .clause =
         "children are not welcome|kids are not allowed|families are not catered for|it is best "
         "to leave the children at home|families should look elsewhere|you cannot bring the "
         "kids"},
};

inline constexpr SlotValue kNear[] = {
    {.mr = "the Clock Tower", .thing = "the Clock Tower"},
    {.mr = "the Town Hall", .thing = "the Town Hall"},
    {.mr = "Queen's Bridge", .thing = "Queen's Bridge"},
    {.mr = "Station Road", .thing = "Station Road"},
    {.mr = "the Botanic Garden", .thing = "the Botanic Garden"},
    {.mr = "St Agnes Church", .thing = "St Agnes Church"},
    {.mr = "the Opera House", .thing = "the Opera House"},
    {.mr = "Mill Lane", .thing = "Mill Lane"},
    {.mr = "the Railway Museum", .thing = "the Railway Museum"},
    {.mr = "the North Gate", .thing = "the North Gate"},
    {.mr = "Cinema Astra", .thing = "Cinema Astra"},
    {.mr = "Hotel Miramar", .thing = "Hotel Miramar"},
    {.mr = "the Fish Hall", .thing = "the Fish Hall"},
    {.mr = "Baker's Corner", .thing = "Baker's Corner"},
    {.mr = "the Law Courts", .thing = "the Law Courts"},
    {.mr = "Victory Park", .thing = "Victory Park"},
    {.mr = "the Ferry Terminal", .thing = "the Ferry Terminal"},
    {.mr = "the Royal Library", .thing = "the Royal Library"},
    {.mr = "Chestnut Avenue", .thing = "Chestnut Avenue"},
    {.mr = "the Aquarium", .thing = "the Aquarium"},
    {.mr = "Hotel Bellevue", .thing = "Hotel Bellevue"},
    {.mr = "the Customs House", .thing = "the Customs House"},
    {.mr = "Nelson Stadium", .thing = "Nelson Stadium"},
    {.mr = "the Puppet Theatre", .thing = "the Puppet Theatre"},
    {.mr = "Bridge Street", .thing = "Bridge Street"},
    {.mr = "the Planetarium", .thing = "the Planetarium"},
    {.mr = "Wharf Nine", .thing = "Wharf Nine"},
    {.mr = "the Post Office", .thing = "the Post Office"},
    {.mr = "Abbey Ruins", .thing = "Abbey Ruins"},
    {.mr = "the South Gate", .thing = "the South Gate"},
    {.mr = "Cathedral Steps", .thing = "Cathedral Steps"},
    {.mr = "the Tram Depot", .thing = "the Tram Depot"},
    {.mr = "Garrison Hill", .thing = "Garrison Hill"},
    {.mr = "the Flower Market", .thing = "the Flower Market"},
    {.mr = "King's College", .thing = "King's College"},
    {.mr = "the Art Gallery", .thing = "the Art Gallery"},
    {.mr = "Mermaid Fountain", .thing = "Mermaid Fountain"},
    {.mr = "the Bus Station", .thing = "the Bus Station"},
    {.mr = "Tanner's Yard", .thing = "Tanner's Yard"},
    {.mr = "the Winter Garden", .thing = "the Winter Garden"},
};

// A restaurant's name is an adjective and a noun, after "The" for every second one.
inline constexpr std::string_view kNameAdjectives[] = {
    "Olive",  "Golden", "Silver",  "Crimson", "Quiet",  "Rusty",  "Merry",   "Blue",   "Wandering",
    "Hungry", "Sleepy", "Crooked", "Velvet",  "Copper", "Lucky",  "Gentle",  "Marble", "Painted",
    "Hidden", "Jolly",  "Amber",   "Dancing", "Frosty", "Humble", "Scarlet", "Singing"};
inline constexpr std::string_view kNameNouns[] = {
    "Grove",  "Lantern", "Anchor",  "Heron",   "Fox",     "Kettle",  "Spoon",   "Table",  "Oak",
    "Rabbit", "Wheel",   "Barrel",  "Plough",  "Sparrow", "Orchard", "Hearth",  "Pepper", "Acorn",
    "Ladder", "Goose",   "Thistle", "Compass", "Candle",  "Otter",   "Juniper", "Saddle"};

}  // namespace lte
