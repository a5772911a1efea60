"""The words of `wmt_sentences`, English and German. Cases and endings are those that its frames need."""

# English singular and plural; German (gender, singular, plural), the commoner first.
NOUNS = [
    ("book", "books", [("n", "Buch", "Bücher")]),
    ("car", "cars", [("n", "Auto", "Autos"), ("m", "Wagen", "Wagen")]),
    ("house", "houses", [("n", "Haus", "Häuser")]),
    ("letter", "letters", [("m", "Brief", "Briefe")]),
    ("ticket", "tickets", [("f", "Fahrkarte", "Fahrkarten"), ("m", "Fahrschein", "Fahrscheine")]),
    ("picture", "pictures", [("n", "Bild", "Bilder"), ("n", "Foto", "Fotos")]),
    ("apple", "apples", [("m", "Apfel", "Äpfel")]),
    ("bottle", "bottles", [("f", "Flasche", "Flaschen")]),
    ("chair", "chairs", [("m", "Stuhl", "Stühle")]),
    ("table", "tables", [("m", "Tisch", "Tische")]),
    ("lamp", "lamps", [("f", "Lampe", "Lampen"), ("f", "Leuchte", "Leuchten")]),
    ("bicycle", "bicycles", [("n", "Fahrrad", "Fahrräder"), ("n", "Rad", "Räder")]),
    ("newspaper", "newspapers", [("f", "Zeitung", "Zeitungen")]),
    ("key", "keys", [("m", "Schlüssel", "Schlüssel")]),
    ("egg", "eggs", [("n", "Ei", "Eier")]),
    ("cup", "cups", [("f", "Tasse", "Tassen"), ("m", "Becher", "Becher")]),
    ("glass", "glasses", [("n", "Glas", "Gläser")]),
    ("shirt", "shirts", [("n", "Hemd", "Hemden")]),
    ("shoe", "shoes", [("m", "Schuh", "Schuhe")]),
    ("stone", "stones", [("m", "Stein", "Steine")]),
    ("tree", "trees", [("m", "Baum", "Bäume")]),
    ("flower", "flowers", [("f", "Blume", "Blumen")]),
    ("horse", "horses", [("n", "Pferd", "Pferde")]),
    ("dog", "dogs", [("m", "Hund", "Hunde")]),
    ("cow", "cows", [("f", "Kuh", "Kühe")]),
    ("ship", "ships", [("n", "Schiff", "Schiffe")]),
    ("box", "boxes", [("f", "Kiste", "Kisten"), ("f", "Schachtel", "Schachteln")]),
    ("computer", "computers", [("m", "Computer", "Computer"), ("m", "Rechner", "Rechner")]),
    ("watch", "watches", [("f", "Uhr", "Uhren"), ("f", "Armbanduhr", "Armbanduhren")]),
    ("coin", "coins", [("f", "Münze", "Münzen")]),
    ("stamp", "stamps", [("f", "Briefmarke", "Briefmarken")]),
    ("knife", "knives", [("n", "Messer", "Messer")]),
    ("bag", "bags", [("f", "Tasche", "Taschen"), ("f", "Tüte", "Tüten")]),
    ("machine", "machines", [("f", "Maschine", "Maschinen")]),
    ("window", "windows", [("n", "Fenster", "Fenster")]),
    ("door", "doors", [("f", "Tür", "Türen")]),
    ("table lamp", "table lamps", [("f", "Tischlampe", "Tischlampen")]),
    ("house door", "house doors", [("f", "Haustür", "Haustüren")]),
    ("house key", "house keys", [("m", "Hausschlüssel", "Hausschlüssel")]),
    ("car door", "car doors", [("f", "Autotür", "Autotüren")]),
    ("apple tree", "apple trees", [("m", "Apfelbaum", "Apfelbäume")]),
    ("picture book", "picture books", [("n", "Bilderbuch", "Bilderbücher")]),
    ("shoe box", "shoe boxes", [("f", "Schuhschachtel", "Schuhschachteln")]),
    ("bottle opener", "bottle openers", [("m", "Flaschenöffner", "Flaschenöffner")]),
    ("flower pot", "flower pots", [("m", "Blumentopf", "Blumentöpfe")]),
    ("letter box", "letter boxes", [("m", "Briefkasten", "Briefkästen")]),
    ("bird", "birds", [("m", "Vogel", "Vögel")]),
    ("cat", "cats", [("f", "Katze", "Katzen")]),
    ("bread knife", "bread knives", [("n", "Brotmesser", "Brotmesser")]),
    ("pencil", "pencils", [("m", "Bleistift", "Bleistifte")]),
    ("spoon", "spoons", [("m", "Löffel", "Löffel")]),
    ("fork", "forks", [("f", "Gabel", "Gabeln")]),
    ("plate", "plates", [("m", "Teller", "Teller")]),
    ("bed", "beds", [("n", "Bett", "Betten")]),
    ("umbrella", "umbrellas", [("m", "Regenschirm", "Regenschirme")]),
    ("ring", "rings", [("m", "Ring", "Ringe")]),
    ("hat", "hats", [("m", "Hut", "Hüte")]),
    ("coat", "coats", [("m", "Mantel", "Mäntel")]),
    ("dress", "dresses", [("n", "Kleid", "Kleider")]),
    ("pear", "pears", [("f", "Birne", "Birnen")]),
    ("cherry", "cherries", [("f", "Kirsche", "Kirschen")]),
    ("potato", "potatoes", [("f", "Kartoffel", "Kartoffeln")]),
    ("sheep", "sheep", [("n", "Schaf", "Schafe")]),
    ("bridge", "bridges", [("f", "Brücke", "Brücken")]),
    ("mirror", "mirrors", [("m", "Spiegel", "Spiegel")]),
    ("needle", "needles", [("f", "Nadel", "Nadeln")]),
    ("candle", "candles", [("f", "Kerze", "Kerzen")]),
    ("brush", "brushes", [("f", "Bürste", "Bürsten")]),
    ("basket", "baskets", [("m", "Korb", "Körbe")]),
    ("violin", "violins", [("f", "Geige", "Geigen")]),
    ("tent", "tents", [("n", "Zelt", "Zelte")]),
    ("wheel", "wheels", [("n", "Rad", "Räder")]),
]
# English infinitive and past; German infinitive and participle, the commoner first. All take haben.
VERBS = [
    ("buy", "bought", [("kaufen", "gekauft"), ("erwerben", "erworben")]),
    ("sell", "sold", [("verkaufen", "verkauft")]),
    ("find", "found", [("finden", "gefunden")]),
    ("see", "saw", [("sehen", "gesehen")]),
    ("order", "ordered", [("bestellen", "bestellt")]),
    ("count", "counted", [("zählen", "gezählt")]),
    ("bring", "brought", [("bringen", "gebracht")]),
    ("send", "sent", [("schicken", "geschickt"), ("senden", "gesendet")]),
    ("lose", "lost", [("verlieren", "verloren")]),
    ("forget", "forgot", [("vergessen", "vergessen")]),
    ("repair", "repaired", [("reparieren", "repariert")]),
    ("collect", "collected", [("sammeln", "gesammelt")]),
    ("need", "needed", [("brauchen", "gebraucht"), ("benötigen", "benötigt")]),
    ("deliver", "delivered", [("liefern", "geliefert")]),
    ("steal", "stole", [("stehlen", "gestohlen")]),
    ("pick up", "picked up", [("abholen", "abgeholt")]),
    ("pack", "packed", [("einpacken", "eingepackt")]),
    ("test", "tested", [("prüfen", "geprüft"), ("testen", "getestet")]),
]
# English; German; grammatical person: 1 (ich), 3 (er, sie, es) or "pl" (wir, sie).
SUBJECTS = [
    ("i", "ich", "1"), ("he", "er", "3"), ("she", "sie", "3"), ("we", "wir", "pl"), ("they", "sie", "pl"),
    ("peter", "Peter", "3"), ("anna", "Anna", "3"), ("the teacher", "der Lehrer", "3"), ("nobody", "niemand", "3"),
    ("the girl", "das Mädchen", "3"), ("my brother", "mein Bruder", "3"), ("our neighbours", "unsere Nachbarn", "pl"),
    ("the boss", "der Chef", "3"), ("the children", "die Kinder", "pl"), ("her sister", "ihre Schwester", "3"),
    ("two friends", "zwei Freunde", "pl"), ("the engineer", "der Ingenieur", "3"), ("my parents", "meine Eltern", "pl"),
]  # fmt: skip
# German forms for ich, er and wir; English for i and we, and for he.
AUXILIARIES = [
    (("will", "will"), ("werde", "wird", "werden")),
    (("must", "must"), ("muss", "muss", "müssen")),
    (("can", "can"), ("kann", "kann", "können")),
    (("want to", "wants to"), ("will", "will", "wollen")),
    (("should", "should"), ("soll", "soll", "sollen")),
]
HAVE = ("habe", "hat", "haben")
# English; German as predicate and before a noun.
ADJECTIVES = [
    ("old", "alt", "alte"), ("new", "neu", "neue"), ("red", "rot", "rote"), ("green", "grün", "grüne"),
    ("big", "groß", "große"), ("small", "klein", "kleine"), ("cheap", "billig", "billige"),
    ("heavy", "schwer", "schwere"), ("expensive", "teuer", "teure"), ("beautiful", "schön", "schöne"),
    ("black", "schwarz", "schwarze"), ("white", "weiß", "weiße"), ("empty", "leer", "leere"), ("full", "voll", "volle"),
]  # fmt: skip
CITIES = [
    ("berlin", "Berlin"), ("munich", "München"), ("vienna", "Wien"), ("cologne", "Köln"), ("hamburg", "Hamburg"),
    ("zurich", "Zürich"), ("nuremberg", "Nürnberg"), ("geneva", "Genf"), ("prague", "Prag"), ("warsaw", "Warschau"),
    ("rome", "Rom"), ("lisbon", "Lissabon"), ("brussels", "Brüssel"), ("milan", "Mailand"),
]  # fmt: skip
MONTHS = [
    ("january", "Januar"), ("february", "Februar"), ("march", "März"), ("april", "April"), ("may", "Mai"),
    ("june", "Juni"), ("july", "Juli"), ("august", "August"), ("september", "September"), ("october", "Oktober"),
    ("november", "November"), ("december", "Dezember"),
]  # fmt: skip
WEEKDAYS = [
    ("monday", "Montag"), ("tuesday", "Dienstag"), ("wednesday", "Mittwoch"), ("thursday", "Donnerstag"),
    ("friday", "Freitag"), ("saturday", "Samstag"), ("sunday", "Sonntag"),
]  # fmt: skip
UNITS = [("days", "Tagen"), ("weeks", "Wochen"), ("months", "Monaten"), ("years", "Jahren"), ("hours", "Stunden")]
ARTICLES = {"m": "der", "f": "die", "n": "das"}
# What a subordinate clause hangs on.
OPENINGS = [
    ("i believe that", "ich glaube dass"), ("we know that", "wir wissen dass"), ("peter said that", "Peter sagte dass"),
    ("it is good that", "es ist gut dass"), ("nobody knows whether", "niemand weiß ob"),
    ("anna is happy because", "Anna ist froh weil"), ("she asked whether", "sie fragte ob"),
    ("they hope that", "sie hoffen dass"),
]  # fmt: skip
PREFIXES = ("ab", "an")  # separable ones, as they stand at the end of a main clause
