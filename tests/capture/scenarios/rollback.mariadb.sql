-- Transactions that are taken back, in whole or to a savepoint, beside an engine that cannot.
CREATE TABLE t (id INT PRIMARY KEY, n INT) ENGINE = InnoDB;
CREATE TABLE m (id INT PRIMARY KEY, n INT) ENGINE = MyISAM;
INSERT INTO t VALUES (1, 1), (2, 2);
INSERT INTO m VALUES (1, 1);
BEGIN;
UPDATE t SET n = 10;
UPDATE m SET n = 10;
ROLLBACK;
BEGIN;
UPDATE t SET n = 20 WHERE id = 1;
SAVEPOINT half;
UPDATE t SET n = 20 WHERE id = 2;
INSERT INTO m VALUES (2, 2);
ROLLBACK TO half;
COMMIT;
INSERT INTO t VALUES (3, 3);
