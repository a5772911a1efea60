"""The words of `sentences.py`, English and German. Cases and endings are those that its frames need."""

# English singular and plural; German (gender, singular, plural), the commoner first.
NOUNS = [
    ("book", "books", [("n", "Buch", "Bücher"), ("m", "Band", "Bände")]),
    ("car", "cars", [("n", "Auto", "Autos"), ("m", "Wagen", "Wagen")]),
    ("house", "houses", [("n", "Haus", "Häuser"), ("n", "Gebäude", "Gebäude")]),
    ("letter", "letters", [("m", "Brief", "Briefe"), ("n", "Schreiben", "Schreiben")]),
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
    ("bread knife", "bread knives", [("n", "Brotmesser", "Brotmesser")]),
]
# English infinitive and past; German infinitive and participle, the commoner first. All take haben.
VERBS = [
    ("buy", "bought", [("kaufen", "gekauft"), ("erwerben", "erworben")]),
    ("sell", "sold", [("verkaufen", "verkauft"), ("veräußern", "veräußert")]),
    ("find", "found", [("finden", "gefunden"), ("entdecken", "entdeckt")]),
    ("see", "saw", [("sehen", "gesehen"), ("erblicken", "erblickt")]),
    ("order", "ordered", [("bestellen", "bestellt"), ("anfordern", "angefordert")]),
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
# English; German as predicate and before a noun, the commoner first.
ADJECTIVES = [
    ("old", [("alt", "alte"), ("betagt", "betagte")]),
    ("new", [("neu", "neue"), ("neuartig", "neuartige")]),
    ("red", [("rot", "rote")]),
    ("green", [("grün", "grüne")]),
    ("big", [("groß", "große"), ("riesig", "riesige")]),
    ("small", [("klein", "kleine"), ("winzig", "winzige")]),
    ("cheap", [("billig", "billige"), ("günstig", "günstige")]),
    ("heavy", [("schwer", "schwere")]),
    ("expensive", [("teuer", "teure"), ("kostspielig", "kostspielige")]),
    ("beautiful", [("schön", "schöne"), ("hübsch", "hübsche")]),
    ("black", [("schwarz", "schwarze")]),
    ("white", [("weiß", "weiße")]),
    ("empty", [("leer", "leere")]),
    ("full", [("voll", "volle")]),
]
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
# What a subordinate clause hangs on; German, the commoner first.
OPENINGS = [
    ("i believe that", ["ich glaube dass", "ich meine dass"]),
    ("we know that", ["wir wissen dass", "uns ist bekannt dass"]),
    ("peter said that", ["Peter sagte dass", "Peter hat gesagt dass"]),
    ("it is good that", ["es ist gut dass", "gut ist dass"]),
    ("nobody knows whether", ["niemand weiß ob", "keiner weiß ob"]),
    ("anna is happy because", ["Anna ist froh weil", "Anna freut sich weil"]),
    ("she asked whether", ["sie fragte ob", "sie wollte wissen ob"]),
    ("they hope that", ["sie hoffen dass"]),
]
PREFIXES = ("ab", "an")  # separable ones, as they stand at the end of a main clause
